"""Presets and the published schema: every shipped study loads as documented."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankscope.config.loader import load_study_file, published_schema, study_json_schema
from rankscope.config.presets import PRESETS
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.run.groups import make_groups
from rankscope.run.trials import make_trials
from rankscope.tools.new_study import (
    hub_pieces,
    model_for_study_file,
    path_for_study_file,
    study_template,
    takes_own_rows,
)

ROOT = Path(__file__).parents[2]


def load_text(text: str, folder: Path) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study_file(path)


def planned(config: StudyConfig) -> int:
    """Trials of a study; its groups must hold them all."""
    hashes = dict.fromkeys(config.evaluation_tasks(), "data")
    hashes |= {r.task: "rows" for arm in config.arms for r in arm.replay or ()}
    rows = {n for arm in config.arms for n in arm.rows or ()}
    fewer = {(task.name, n): str(n) for task in config.tasks for n in rows if n != "all"}
    trials = make_trials(config, "base", hashes, {}, hashes, hashes, fewer)
    assert sum(len(group) for group in make_groups(trials, config.max_group_size)) == len(trials)
    return len(trials)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_commented_and_ask_the_same_of_the_pocket_model(
    preset: str, tmp_path: Path
) -> None:
    assert len(PRESETS[preset]) < 80
    texts = study_template(preset), study_template(preset, "pocket")
    own, config = (load_text(text, tmp_path) for text in texts)
    # No point is written twice, so what the file asks for is what is trained.
    assert planned(own) == own.num_trials_as_written()
    assert planned(config) == config.num_trials_as_written()
    assert config.model.pocket
    assert all(name.startswith("pocket_") for name in config.evaluation_tasks())
    assert (config.name, len(config.tasks)) == (own.name, len(own.tasks))
    for asked, found in zip(own.arms, config.arms, strict=True):
        assert (asked.method, asked.alpha) == (found.method, found.alpha)
        assert asked.model_fields_set == found.model_fields_set
    lines = ([line for line in t.splitlines() if line.strip().startswith("#")] for t in texts)
    comments, on_pocket = lines
    assert comments == on_pocket != []


@pytest.mark.parametrize(
    ("preset", "model"),
    list(
        zip(
            [preset for preset in PRESETS if preset != "pocket"],
            itertools.cycle(["./m", "owner/name", "smollm2-135m", "./a: b #c 'd'"]),
        )
    ),
)
def test_a_model_takes_the_place_of_the_presets_own(
    preset: str, model: str, tmp_path: Path
) -> None:
    plain = load_text(study_template(preset), tmp_path)
    config = load_text(study_template(preset, model), tmp_path)
    expected = load_text(
        f"name: x\nmodel: '{model.replace(chr(39), 2 * chr(39))}'\n"
        "tasks: [a]\narms: [{method: full, lr: 1}]\n",
        tmp_path,
    )
    assert config == plain.model_copy(update={"model": expected.model})


@pytest.mark.parametrize(
    ("preset", "model", "message"),
    [
        *[("default", m, "^--model ") for m in ("../x\nname: y", "", "owner/../x", "a/b/c")],
        ("rank_sanity", None, "did you mean 'rank-sanity'"),
        ("../../etc/passwd", None, "expected one of default, pocket"),
        ("pocket", "owner/name", "expected the pocket model"),
    ],
)
def test_presets_and_models_that_are_refused(preset: str, model: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study_template(preset, model)


def test_a_folder_is_named_from_the_study_files_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_for_study_file("models/m", Path("study.yaml")) == "./models/m"
    # Outside the study file's folder a path is absolute: no '../../..' to count.
    assert model_for_study_file("models/m", Path("studies/study.yaml")) == str(
        tmp_path / "models" / "m"
    )
    assert path_for_study_file(Path("studies/../rows.jsonl"), Path("study.yaml")) == "./rows.jsonl"
    assert model_for_study_file("owner/name", Path("study.yaml")) == "owner/name"
    text = study_template("default", model_for_study_file("models/m", Path("studies/study.yaml")))
    config = load_text(text, tmp_path / "studies")
    assert config.model.path == str(tmp_path / "models" / "m")


# --- the published schema -----------------------------------------------------------------------


def test_the_published_schema_is_up_to_date() -> None:
    published = ROOT / "docs" / "study.schema.json"
    assert json.loads(published.read_text("utf-8")) == json.loads(published_schema()), (
        "docs/study.schema.json is not what the study file's classes say; write it anew with "
        "'rankscope init --schema > docs/study.schema.json'"
    )


def every_schema(node: Any) -> list[dict[str, Any]]:
    """All JSON schema objects below a node that describe an object with properties."""
    found: list[dict[str, Any]] = []
    if isinstance(node, dict):
        if "properties" in node:
            found.append(node)
        for value in node.values():
            found += every_schema(value)
    if isinstance(node, list):
        for value in node:
            found += every_schema(value)
    return found


def test_the_schema_explains_every_key_and_forbids_others() -> None:
    sections = every_schema(study_json_schema())
    # Study, model, given, task, arm, replay, early stop, budget, train, evaluate,
    # analyze, objective, executor, local, and those of extensions.
    assert len(sections) >= 14
    for section in sections:
        assert section["additionalProperties"] is False
        unexplained = [k for k, v in section["properties"].items() if "description" not in v]
        assert not unexplained, f"{section['title']}: {unexplained}"


def test_the_smallest_study_of_the_reference_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "study-file.md").read_text("utf-8")
    (smallest,) = [b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "model:" in b]
    assert planned(load_text(smallest, tmp_path)) == 3 * 2 * 3


def test_own_rows_and_a_data_folder_are_written_in(tmp_path: Path) -> None:
    task = {"name": "mine", "train": "./rows: mine.jsonl", "test": "./t.csv", "scorer": "number"}
    text = study_template("default", "pocket", task, "../data")
    config = load_text(text, tmp_path)
    assert config.tasks[0].train == str(tmp_path / "rows: mine.jsonl")
    assert (config.name, config.tasks[0].name, config.tasks[0].scorer) == ("mine", "mine", "number")
    assert config.tasks[0].test == str(tmp_path / "t.csv")
    # The pocket model knows no other words than those of its world.
    assert [t.name for t in config.evaluate.retention] == ["pocket_cloze", "pocket_math"]
    assert config.data_dir == str(tmp_path.parent / "data")
    assert "\nmodel: pocket\ndtype: float32\ndata_dir: ../data\n\n#" in text
    with pytest.raises(UserError, match="named tasks"):
        study_template("cross-domain", task=task)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if takes_own_rows(preset)])
def test_own_presets_take_rows_and_retention_tasks_and_need_no_hub(
    preset: str, tmp_path: Path
) -> None:
    task = {"name": "mine", "train": "./rows.csv"}
    config = load_text(study_template(preset, task=task), tmp_path)
    assert [t.name for t in config.tasks] == ["mine"]
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    needed = {"arc_easy"} if preset == "mitigation" else set()
    assert set(hub_pieces(config)) == needed
    named = load_text(study_template(preset, None, task, None, ["piqa", "boolq"]), tmp_path)
    assert {t.name for t in config.evaluate.retention} <= {"common_facts"}
    assert [t.name for t in named.evaluate.retention] == ["piqa", "boolq"]
    limited = load_text(study_template(preset, "pocket", may_lose=3), tmp_path)
    assert (limited.objective.max_forgetting, limited.evaluate.max_new_tokens) == (0.03, 32)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_data_folder_fits_every_preset(preset: str, tmp_path: Path) -> None:
    plain = load_text(study_template(preset), tmp_path)
    config = load_text(study_template(preset, data_dir="./data"), tmp_path)
    assert config == plain.model_copy(update={"data_dir": str(tmp_path / "data")})


def test_retention_of_ones_own_is_written_as_given(tmp_path: Path) -> None:
    own = load_text(
        study_template("default", "pocket", retention=("mmlu", "common_facts")), tmp_path
    )
    assert [task.name for task in own.evaluate.retention] == ["mmlu", "common_facts"]
