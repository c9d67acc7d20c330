"""Nested runs in a study: one training, a trial per rank, whatever stops the run in between."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pocket_study import changed, leftovers, results, run_interrupted, small_study
from safetensors.torch import load_file

from rankscope.errors import UserError
from rankscope.records import StudyRecords
from rankscope.run.groups import halves_of
from rankscope.run.prepare import prepare
from rankscope.run.trials import own_identity
from rankscope.store import Ledger, adapter_path

CHANGES: dict[str, Any] = {
    "arms": [{"method": ["lora", "nested"], "rank": [2, 8], "lr": 2e-3}],
    "max_group_size": 3,
    "analyze": {"spectra": {"enabled": False}},
    **changed("train", max_steps=4, evaluate_every=2),
    **changed("evaluate", max_items=8, cross_domain=[], truncated_ranks=[2]),
}
"""Four adapters of LoRA, and two nested runs of two slices: six trainings, two groups of three."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    small_study(folder, **CHANGES).run(folder / "out")
    return folder / "out"


def loaded(out: Path) -> StudyRecords:
    with Ledger.open(out, write=False) as ledger:
        return ledger.load()


def test_a_run_is_trained_once_and_gives_a_trial_of_every_rank(out: Path) -> None:
    study = loaded(out)
    nested = [t for t in study.trials if t.spec.nested]
    assert [(t.spec.rank, t.spec.seed, t.status) for t in nested] == [
        (2, 0, "done"),
        (2, 1, "done"),
        (8, 0, "done"),
        (8, 1, "done"),
    ]
    for small, large in zip(nested[:2], nested[2:], strict=True):
        assert small.train is not None
        assert large.train is not None
        assert small.spec.arm_label == "nested r=2 lr=0.002 ranks=2,8"
        assert small.train.losses == large.train.losses
        assert 4 * small.train.trainable_parameters == large.train.trainable_parameters
        assert small.train.seconds == large.train.seconds  # half the run's each
        assert small.curve == ()
        assert len(large.curve) == 4  # two points on two tasks
        stored = [
            load_file(out / adapter_path(t.spec.trial_id) / "adapter_model.safetensors")
            for t in (small, large)
        ]
        for name, cut in stored[0].items():
            whole = stored[1][name]
            assert torch.equal(cut, whole[:2] if "lora_A" in name else whole[:, :2])
        # Every slice is scored like any trial.
        keys = {(task, split) for model, task, split in study.evals if model == small.spec.trial_id}
        assert keys == {
            (task, split)
            for task in ("pocket_med", "pocket_cloze")
            for split in ("validation", "test")
        }
    truncated = {model for model, _, _ in study.evals if "@" in model}
    plain = [t.spec for t in study.trials if t.spec.method == "lora" and t.spec.rank == 8]
    assert truncated == {f"{spec.trial_id}@truncated=2" for spec in plain}


def test_groups_count_trainings_and_keep_slices_together(tmp_path: Path) -> None:
    study = prepare(small_study(tmp_path, **CHANGES).config)
    assert [[(t.method, t.rank) for t in group] for group in study.groups] == [
        [("lora", 2), ("lora", 2), ("lora", 8)],
        [("lora", 8), *[("nested", 2), ("nested", 8)] * 2],
    ]
    runs = study.runs(study.groups[1])
    assert [(t.method, t.rank) for t in runs] == [("lora", 8), ("nested", 8), ("nested", 8)]
    assert study.runs(study.groups[1][1:2]) == (study.groups[1][2],)  # a slice alone
    first, second = halves_of(study.groups[1])
    assert (len(first), len(second)) == (3, 2)
    assert [len(half) for half in halves_of(second)] == [1, 1]
    config = study.config.train
    assert all("nested" not in own_identity(t, config) for t in study.trials if not t.nested)


def test_a_study_stopped_over_and_over_comes_to_the_same(out: Path, tmp_path: Path) -> None:
    user = run_interrupted(small_study(tmp_path, **CHANGES), tmp_path / "out", every=9)
    assert user.stops > 3
    assert results(tmp_path / "out") == results(out)
    assert leftovers(tmp_path / "out") == []


def test_a_slice_that_is_run_again_is_cut_from_the_same_run(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    before = results(out)
    spec = next(t.spec for t in loaded(out).trials if t.spec.is_slice)
    small_study(tmp_path, **CHANGES).run(tmp_path / "out", retry=[spec.trial_id])
    after = results(tmp_path / "out")
    for files in (before, after):  # whom it trained with differs, and with that the rounding
        del files["trials"]
    assert after.keys() == before.keys()
    assert after["curves"] == before["curves"]


def test_ranks_that_cannot_be_nested_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found rank \[8\], expected two .* 'nested'"):
        small_study(tmp_path, arms=[{"method": "nested", "rank": 8, "lr": 1e-3}])
    arms = [{"method": "nested", "rank": [8, 256], "lr": 1e-3}]
    with pytest.raises(UserError, match="found rank 256, expected at most 128"):
        small_study(tmp_path, arms=arms).check()
    arms[0]["rank"] = [2, 8]
    with pytest.raises(UserError, match="trains all its ranks in one run, so none can be"):
        small_study(tmp_path, arms=arms, strategy="adaptive", evaluate={}).check()
