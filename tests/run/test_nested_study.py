"""Nested runs in a study: one training, a trial per rank, whatever stops the run in between."""

from pathlib import Path
from typing import Any

import torch
from finished_studies import Finished
from pocket_study import changed, small_study
from safetensors.torch import load_file

from rankscope.run.groups import halves_of
from rankscope.run.prepare import prepare
from rankscope.run.trials import own_identity
from rankscope.store import adapter_path

CHANGES: dict[str, Any] = {
    "arms": [{"method": ["lora", "nested"], "rank": [2, 8], "lr": 2e-3}],
    "max_group_size": 3,
    "analyze": {"spectra": {"enabled": False}},
    **changed("train", max_steps=4, evaluate_every=2),
    **changed("evaluate", max_items=8, cross_domain=[], truncated_ranks=[2]),
}
"""Four adapters of LoRA, and two nested runs of two slices: six trainings, two groups of three."""


def test_a_run_is_trained_once_and_gives_a_trial_of_every_rank(mitigated: Finished) -> None:
    study = mitigated.records
    small, large = (t for t in study.trials if t.spec.nested)
    assert (small.spec.rank, large.spec.rank) == (2, 8)
    assert small.spec.arm_label == "nested r=2 lr=0.002 ranks=2,8"
    assert small.train.losses == large.train.losses
    assert 4 * small.train.trainable_parameters == large.train.trainable_parameters
    assert small.train.seconds == large.train.seconds  # half the run's each
    assert small.curve == ()
    assert len(large.curve) == 4 * 2  # four points on two tasks
    stored = [
        load_file(mitigated.out / adapter_path(t.spec.trial_id) / "adapter_model.safetensors")
        for t in (small, large)
    ]
    for name, cut in stored[0].items():
        whole = stored[1][name]
        assert torch.equal(cut, whole[:2] if "lora_A" in name else whole[:, :2])
    # Every slice is scored like any trial.
    scored = [key[1:] for key in study.evals if key[0] == small.spec.trial_id]
    assert scored == [key[1:] for key in study.evals if key[0] == large.spec.trial_id]
    truncated = {model for model, _, _ in study.evals if "@truncated" in model}
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
