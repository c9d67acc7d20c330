"""A study as a whole: run, repeated, edited, with trials that fail, and what is refused."""

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rankscope
from pocket_study import (
    EVALS_EACH,
    NUM_TRIALS,
    ROUNDING,
    SETTINGS,
    Counter,
    changed,
    leftovers,
    loaded,
    other_base,
    other_tokenizer,
    results,
    small_study,
    study_file,
)
from safetensors.torch import load_file

from rankscope.errors import NotFiniteError
from rankscope.models import load
from rankscope.records import StudyRecords, TrialRecords
from rankscope.run.outputs import write_outputs
from rankscope.store import Ledger, find_problems, weights_path
from rankscope.train import trial_state

LORA, _, FULL = SETTINGS["arms"]


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of the finished study with the times of its files."""
    shutil.copytree(small, tmp_path / "out")
    return tmp_path / "out"


def rows(out: Path) -> dict[str, list[Any]]:
    """Every row of the ledger but the times of runs."""
    db = sqlite3.connect(f"file:{out}/ledger.sqlite?mode=ro", uri=True)
    try:
        tables = ("trials", "records", "artifacts", "study")
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=str) for name in tables}
    finally:
        db.close()


def written(out: Path) -> dict[str, tuple[int, int]]:
    """Place and time of change of every file but the log and what SQLite and the lock touch."""
    touched = (
        "log.jsonl", "ledger.lock", "ledger.sha256", "ledger.sqlite", "ledger.sqlite-wal",
        "ledger.sqlite-shm",
    )  # fmt: skip
    return {
        path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and path.name not in touched
    }


def trial(study: StudyRecords, label: str) -> TrialRecords:
    """The trial called ``label``."""
    (found,) = [t for t in study.trials if t.spec.label == label]
    return found


def adapter(out: Path, study: StudyRecords, label: str) -> dict[str, torch.Tensor]:
    """A trial's stored tensors."""
    place = weights_path(trial(study, label).spec)
    return load_file(out / place / "adapter_model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal but for rounding, relative to each tensor's norm."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm()) <= ROUNDING * float(tensor.norm())
        assert float(tensor.norm()) > 0


def test_every_trial_is_trained_scored_and_told_of(small: Path) -> None:
    with Ledger.open(small, write=False) as ledger:
        study = ledger.load()
        assert find_problems(ledger.out) == []
    assert [t.status for t in study.trials] == ["done"] * NUM_TRIALS
    assert len(study.evals) == EVALS_EACH * (NUM_TRIALS + 1)
    for found in study.trials:
        assert len(found.train.losses) == found.train.steps == SETTINGS["train"]["max_steps"]
        assert found.train.group_size == (1 if found.spec.method == "full" else 2)
    # What was trained is not the base: else the scores below would be its.
    assert len({t.train.weights_sha256 for t in study.trials if t.train}) == NUM_TRIALS
    answer = json.loads((small / "recommendation.json").read_text("utf-8"))
    assert [advice["task"] for advice in answer["advice"]] == ["pocket_med"]
    page = (small / "report.html").read_text("utf-8")
    for found in study.trials:
        assert found.spec.arm_label in page
    assert (small / "study.resolved.yaml").is_file()
    assert leftovers(small) == []


def test_the_same_study_again_does_nothing(copy: Path, tmp_path: Path) -> None:
    write_outputs(copy)  # the page names the study's folder
    rows_before, written_before = rows(copy), written(copy)
    user = Counter()
    small_study(tmp_path).run(copy, user)
    write_outputs(copy)
    assert user.stages == ["preparing"]
    assert rows(copy) == rows_before
    assert written(copy) == written_before


def test_an_added_rank_trains_alone(copy: Path, tmp_path: Path) -> None:
    """The new trials share a group with old ones, which stay as they are."""
    before, written_before = results(copy), written(copy)
    arms = [{**LORA, "rank": [2, 4]}, *SETTINGS["arms"][1:]]
    user = Counter()
    study = small_study(tmp_path, arms=arms, max_group_size=16).run(copy, user)
    assert [t.status for t in study.trials] == ["done"] * (NUM_TRIALS + 2)
    assert user.trained == ["group 1/3 pocket_med train 2 adapters r 4-4"]
    after = results(copy)
    for part in ("trials", "evals", "files"):
        kept = {key: value for key, value in after[part].items() if key in before[part]}
        assert kept == before[part]
        assert len(after[part]) > len(before[part])
    written_after = written(copy)
    artifacts = [place for place in written_before if place.startswith("artifacts/")]
    assert [p for p in artifacts if written_after[p] != written_before[p]] == []


def test_an_added_task_is_scored_and_nothing_trained(copy: Path, tmp_path: Path) -> None:
    before = results(copy)
    evaluation = changed("evaluate", cross_domain=["pocket_gsm", "pocket_law"])
    user = Counter()
    study = small_study(tmp_path, **evaluation).run(copy, user)
    assert len(study.evals) == (EVALS_EACH + 1) * (NUM_TRIALS + 1)
    assert not [name for name in user.stages if "train" in name]
    after = results(copy)
    assert after["trials"] == before["trials"]
    assert {key: after["evals"][key] for key in before["evals"]} == before["evals"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (changed("evaluate", batch_tokens=2048), "task 'pocket_med'"),
        (changed("evaluate", max_new_tokens=9), "task 'pocket_med'"),
        (changed("evaluate", max_items=15), "task 'pocket_med'"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"data_seed": 5}, "task 'pocket_med'"),
        ({"model": "other"}, "base model"),
        ({"model": "same weights, other tokenizer"}, "task 'pocket_med'"),
    ],
)
def test_an_edit_that_would_mix_results_is_refused(
    changes: dict[str, Any], named: str, copy: Path, tmp_path: Path
) -> None:
    if "model" in changes:
        made = other_base if changes["model"] == "other" else other_tokenizer
        changes = {"model": str(made(tmp_path / "other"))}
    rows_before, written_before = rows(copy), written(copy)
    refused = rankscope("run", study_file(tmp_path, **changes), "--out", copy)
    assert refused.code == 2
    assert named in refused.told
    assert "--out" in refused.told
    assert rows(copy) == rows_before
    assert written(copy) == written_before


@pytest.mark.pitfall(22)
def test_a_trial_that_diverges_leaves_its_neighbors_alone(tmp_path: Path) -> None:
    rates = {"seeds": [0], "max_group_size": 3}
    good = {**LORA, "lr": [1e-3, 2e-3]}
    file = study_file(tmp_path, arms=[{**LORA, "lr": [1e-3, 1e6, 2e-3]}], **rates)
    ran = rankscope("run", file, "--out", tmp_path / "mixed")
    assert (ran.code, "lr=1000000" in ran.out) == (3, True)
    mixed = loaded(tmp_path / "mixed")
    assert [t.status for t in mixed.trials] == ["done", "diverged", "done"]
    failed = mixed.trials[1]
    assert failed.failure is not None
    # Step 1 has rate 0 (warm-up); every loss is finite.
    assert "after step 2 of 8 the update of the weights is" in failed.failure
    assert failed.train is None
    assert failed.failure in (tmp_path / "mixed" / "report.html").read_text("utf-8")
    # The same command again tries nothing anew and still says so.
    rows_before = rows(tmp_path / "mixed")
    assert rankscope("run", file, "--out", tmp_path / "mixed").code == 3
    assert rows(tmp_path / "mixed") == rows_before

    alone = small_study(tmp_path, arms=[good], **rates).run(tmp_path / "alone")
    for found in alone.trials:
        assert_same(
            adapter(tmp_path / "mixed", mixed, found.spec.label),
            adapter(tmp_path / "alone", alone, found.spec.label),
        )


def own_texts(folder: Path) -> dict[str, Any]:
    """A task of plain texts, whose scorer is the loss."""
    texts = "".join(json.dumps({"text": f"a plain text number {i}"}) + "\n" for i in range(60))
    (folder / "texts.jsonl").write_text(texts, encoding="utf-8")
    return {"name": "texts", "train": "texts.jsonl"}


@pytest.fixture
def any_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if training had not noticed an update that is too large."""
    monkeypatch.setattr(trial_state, "LARGEST_UPDATE", math.inf)


@pytest.mark.usefixtures("any_update")
@pytest.mark.parametrize("scorer", ["loss", "option_text"])
def test_a_model_without_likelihoods_fails_and_the_others_go_on(
    scorer: str, tmp_path: Path
) -> None:
    """At rate 2e19 the last of two steps (the first is at rate 0) leaves finite weights whose
    queries times keys are beyond float32, so that likelihoods are not finite."""
    study = small_study(
        tmp_path,
        tasks=[own_texts(tmp_path)] if scorer == "loss" else ["pocket_med"],
        arms=[{**LORA, "lr": [1e-3, 2e19, 2e-3]}],
        seeds=[0],
        max_group_size=3,
        train={**SETTINGS["train"], "max_steps": 2},
        evaluate={"max_items": 8, "retention": ["pocket_cloze"]},
    ).run(tmp_path / "out")
    assert [t.status for t in study.trials] == ["done", "failed", "done"]
    assert "finite" in str(study.trials[1].failure)
    assert {key[0] for key in study.evals} == {
        "base",
        study.trials[0].spec.trial_id,
        study.trials[2].spec.trial_id,
    }
    _, recommendation = write_outputs(tmp_path / "out")
    assert sum(arm.failed for arm in recommendation.advice[0].arms) == 1


@pytest.mark.parametrize("task", ["pocket_med", "texts"])
def test_a_base_without_likelihoods_is_refused(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its score would be 0, and every arm would gain."""
    monkeypatch.setattr(load, "check_rows_apart", lambda base: None)  # on few tokens, it finds this
    study = small_study(
        tmp_path,
        model=str(other_base(tmp_path / "base", "k_proj.weight", 1e37)),
        tasks=[own_texts(tmp_path) if task == "texts" else task],
        arms=[LORA],
    )
    with pytest.raises(NotFiniteError, match=f"{task} validation: the base cannot be scored"):
        study.run(tmp_path / "out")
    with Ledger.open(tmp_path / "out", write=False) as ledger:
        assert not ledger.load().evals


@pytest.mark.usefixtures("any_update")
def test_a_full_model_that_cannot_run_any_more_fails_alone(tmp_path: Path) -> None:
    arms = [{**FULL, "lr": [1e4, 5e-4]}]
    two_steps = changed("train", max_steps=2)
    study = small_study(tmp_path, arms=arms, seeds=[0], **two_steps).run(tmp_path / "out")
    assert [t.status for t in study.trials] == ["failed", "done"]
    assert "cannot be used" in str(study.trials[0].failure)


def test_a_trial_that_trained_nothing_is_not_passed_as_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rate below what float32 can add up leaves every B at zero. No library shows a bar."""
    arms = [{**LORA, "lr": [1e-300, 2e-3]}]
    study = small_study(tmp_path, arms=arms, seeds=[0]).run(tmp_path / "out")
    assert [t.status for t in study.trials] == ["failed", "done"]
    assert str(study.trials[0].failure).startswith("nothing was trained")
    assert capfd.readouterr() == ("", "")


def test_states_of_groups_that_are_no_more_are_removed(copy: Path, tmp_path: Path) -> None:
    orphan = copy / "checkpoints" / "0123456789abcdef" / "step-000000003"
    orphan.mkdir(parents=True)
    (orphan / "meta.json").write_text("{}", encoding="utf-8")
    small_study(tmp_path).run(copy)
    assert leftovers(copy) == []
