"""Models that a study does not train: they pass through it as trained ones do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rankscope
from finished_studies import once
from pocket_study import UNANALYZED, leftovers, loaded, other_base, other_tokenizer, small_study
from safetensors.torch import load_file, save_file

from rankscope.advise.recommend import recommend
from rankscope.errors import UserError
from rankscope.models.adapters.folder import BASE_HASH
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.records import BASE, StudyRecords
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
from rankscope.run.workers.worker import work
from rankscope.store import find_problems
from rankscope.tools.export import ExportRequest, export_trial


def given_study(folder: Path, *given: object, **changes: object) -> Study:
    """The given models on the small study's retention and cross-domain task, without arms."""
    settings = {"tasks": None, "arms": None, **changes}
    return small_study(folder, given=[str(path) for path in given], **settings)


def by_name(study: StudyRecords) -> dict[str, str]:
    return {trial.spec.arm_label: trial.spec.trial_id for trial in study.trials}


def test_given_models_are_scored_and_analyzed_as_trained_ones(
    given_models: Path, tmp_path: Path
) -> None:
    names = ("zero", "lora", "ia3", "full")
    study = given_study(tmp_path, *(given_models / name for name in names))
    assert study.plan().train_tokens == 0
    records = study.run(tmp_path / "out")
    ids = by_name(records)
    assert {trial.status for trial in records.trials} == {"done"}

    def gold(model: str) -> list[float]:
        return list(records.items[model, "pocket_cloze", "test"].gold_logprobs)

    assert gold(ids["zero"]) == gold(BASE)
    assert gold(ids["lora"]) == pytest.approx(gold(ids["full"]), abs=1e-4)
    assert gold(ids["lora"]) != pytest.approx(gold(BASE), abs=1e-2)
    assert gold(ids["ia3"]) != pytest.approx(gold(BASE), abs=1e-2)
    # Nothing is done again, wherever the folder is and whatever its name.
    shutil.copytree(given_models, tmp_path / "moved" / "here")
    moved = [tmp_path / "moved" / "here" / name for name in names]
    again = given_study(tmp_path, *moved).run(tmp_path / "out")
    assert again.evals == records.evals
    _, answer = write_outputs(tmp_path / "out")
    assert answer.advice == ()
    assert (find_problems(tmp_path / "out"), leftovers(tmp_path / "out")) == ([], [])


def test_given_models_beside_trained_ones_move_nothing_of_these(
    given_models: Path, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(small, out)
    before = loaded(out)
    study = small_study(tmp_path, given=[str(given_models / "lora"), str(given_models / "ia3")])
    executor = LocalExecutor(study.config, 1)
    executor.run = lambda unit: work(unit.parents[1], unit.name)  # in this process
    after = study.run(out, executor=executor)
    assert after.trials[: len(before.trials)] == before.trials
    assert {key: after.evals[key] for key in before.evals} == dict(before.evals)
    lora = by_name(after)["lora"]
    assert (lora, "pocket_med", "test") in after.evals
    assert (lora, "pocket_med", "validation") not in after.evals
    _, answer = write_outputs(out, after)
    assert answer.advice == recommend(before).advice
    assert '<section id="given">' in (out / "report.html").read_text("utf-8")
    with pytest.raises(UserError, match="found a given model, expected a trial that was trained"):
        export_trial(out, tmp_path / "exported", ExportRequest(label=lora))
    # Judged for again, its scores are computed anew.
    retried = study.run(out, retry=[lora])
    assert {t.status for t in retried.trials} == {"done"}
    assert retried.items[lora, "pocket_med", "test"].scores.tolist() == (
        after.items[lora, "pocket_med", "test"].scores.tolist()
    )


def test_a_search_trains_none_of_given_models_and_scores_them(
    given_models: Path, tmp_path: Path
) -> None:
    arms, given = [{"method": "lora", "rank": [2, 4], "lr": [1e-3]}], [str(given_models / "lora")]
    search = {"arms": arms, "seeds": [0], "strategy": "search", "budget": "1 trial"}
    alone, beside = small_study(tmp_path, **search), small_study(tmp_path, **search, given=given)
    assert beside.plan().expected_tokens == alone.plan().expected_tokens
    records = beside.run(tmp_path / "out")
    statuses = {trial.spec.arm_label: trial.status for trial in records.trials}
    assert sorted(statuses.values()) == ["done", "done", "skipped"]
    (lora,) = [trial.spec for trial in records.trials if trial.spec.given]
    assert statuses[lora.arm_label] == "done"
    assert (lora.trial_id, "pocket_med", "test") in records.evals


def _other_base(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", BASE_HASH: "f" * 64})


def _other_shapes(folder: Path) -> None:
    tensors = {key: torch.ones(3, 1) for key in load_file(folder / WEIGHTS)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _other_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {key + "x": n for key, n in tokenizer["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("lora", shutil.rmtree, "no such folder"),
        ("lora", lambda folder: (folder / CONFIG).unlink(), CONFIG),
        ("lora", _other_base, "made for another base"),
        ("ia3", _other_base, "made for another base"),
        ("ia3", _other_shapes, "size mismatch for"),
        ("full", _other_tokenizer, "another tokenizer"),
        ("full", _other_architecture, "the base's architecture"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name_before_anything_is_written(
    given_models: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(given_models / name, folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        given_study(tmp_path, given_models / "zero", folder).run(tmp_path / "out")
    assert str(folder) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_two_models_of_the_same_weights_are_refused(given_models: Path, tmp_path: Path) -> None:
    other = shutil.copytree(given_models / "lora", tmp_path / "other")
    adapters = ("--adapter", given_models / "lora", "--adapter", other)
    words = ("eval", "pocket", "--tasks", "pocket_med", *adapters)
    refused = rankscope(*words, "--out", tmp_path / "out")
    assert refused.code == 2
    assert f"model {other}: found the same weights as {given_models / 'lora'}" in refused.told
    assert not (tmp_path / "out").exists()


def test_names_are_those_of_folders_as_far_as_they_must_be(
    given_models: Path, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        shutil.copytree(given_models / "lora", tmp_path / place / "final")
    _other_base(tmp_path / "b" / "final")
    given = [{"path": str(tmp_path / "a/final")}, {"path": "b/final", "force": True}]
    study = small_study(tmp_path, tasks=None, arms=None, given=given)
    records = study.run(tmp_path / "out")
    assert list(by_name(records)) == ["a/final", "b/final"]
    assert any("b/final: records another base" in note for note in records.notes)


# --- scores that another study has stored


def scored_study(folder: Path, *given: object, **changes: object) -> Study:
    """Stored scores on the tasks of ``evaluated``, without analyses."""
    evaluate = {"cross_domain": ["pocket_med", "pocket_gsm"], "split": "test", "max_items": 12}
    settings = {"tasks": None, "arms": None, "analyze": UNANALYZED}
    return small_study(folder, given=list(given), **settings | {"evaluate": evaluate} | changes)


@once
def evaluated(given_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``eval --out`` leaves of two adapters."""
    out = tmp_path_factory.mktemp("evaluated") / "scores"
    adapters = [word for n in ("lora", "ia3") for word in ("--adapter", given_models / n)]
    words = ("--max-items", 12, "--set", "dtype=float32", "--tasks", "pocket_med,pocket_gsm")
    assert rankscope("eval", "pocket", *words, *adapters, "--out", out).code == 0
    return out


def test_stored_scores_stand_beside_models_that_are_scored(
    evaluated: Path, given_models: Path, tmp_path: Path
) -> None:
    stored = {"scores": str(evaluated), "trial": "lora", "name": "stored"}
    study = scored_study(tmp_path, stored, str(given_models / "zero"))
    records = study.run(tmp_path / "out")
    assert {trial.spec.arm_label: trial.status for trial in records.trials} == {
        "zero": "done",
        "stored": "done",
    }
    source, ids = loaded(evaluated), by_name(records)
    lora = by_name(source)["lora"]
    for task in ("pocket_med", "pocket_gsm"):
        ours, theirs = (ids["stored"], task, "test"), (lora, task, "test")
        assert records.evals[ours].score == source.evals[theirs].score
        assert list(records.results[ours]) == list(source.results[theirs])
        assert records.evals[BASE, task, "test"].score == source.evals[BASE, task, "test"].score
    assert find_problems(tmp_path / "out") == []
    assert {score.model for score in recommend(records).given} == {"base", "zero", "stored"}
    # Nothing is done again; with its own weights it is the same trial.
    assert study.run(tmp_path / "out").evals == records.evals
    weights = {"path": str(given_models / "lora"), "name": "stored"}
    again = scored_study(tmp_path, weights, str(given_models / "zero")).run(tmp_path / "out")
    assert by_name(again) == ids


OTHER_SCORING = {"cross_domain": ["pocket_med"], "split": "test", "max_items": 12}


@pytest.mark.parametrize(
    ("stored", "changes", "message"),
    [
        ({"trial": "lora"}, {"dtype": "bfloat16"}, "with dtype 'float32', expected 'bfloat16'"),
        ({"trial": "lora"}, {"model": "other"}, "with sha256 .*as of this study's base"),
        ({"trial": "lora"}, {"model": "tokenizer"}, "on other items, or scored otherwise"),
        ({"trial": "lora"}, {"evaluate": OTHER_SCORING | {"max_items": 9}}, "12 test items before"),
        ({"trial": "lora"}, {"evaluate": {"retention": ["pocket_med"], "max_items": 12}},
         "no validation scores of task 'pocket_med'"),
        ({"trial": "lora"}, {"evaluate": OTHER_SCORING | {"cross_domain": ["pocket_law"]}},
         "no test scores of task 'pocket_law'"),
        ({}, {}, "found 2 finished models, expected one; name one with 'trial': lora "),
        ({"trial": "none"}, {}, "found 0 finished models called 'none'"),
    ],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused_by_name_before_anything_is_written(
    stored: dict[str, str], changes: dict[str, Any], message: str, evaluated: Path, tmp_path: Path
) -> None:
    if "model" in changes:
        made = other_base if changes["model"] == "other" else other_tokenizer
        changes = {"model": str(made(tmp_path / "model"))}
    study = scored_study(tmp_path, {"scores": str(evaluated), **stored}, **changes)
    with pytest.raises(UserError, match=message) as refused:
        study.run(tmp_path / "out")
    assert str(evaluated) in str(refused.value)
    assert not (tmp_path / "out").exists()
