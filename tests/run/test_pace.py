"""What training steps on this machine make of an estimate."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pocket_study import small_study

from rankscope.models.base import Row, RowBatch
from rankscope.run import pace
from rankscope.run.costs import CostModel
from rankscope.run.machines import MACHINES
from rankscope.run.pace import Pace, base_of_shapes, measured_pace
from rankscope.run.plan import make_plan
from rankscope.run.prepared import PreparedStudy

H100 = MACHINES["h100"]
ADAPTIVE = {"strategy": "adaptive", "rungs": [0.25, 0.5]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


def test_the_fastest_step_counts(inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says how long each step takes; the first is not counted. Steps differ in
    tokens, so any of three equal ones may be the fastest, but a slow one changes nothing else."""

    def factor(*seconds: float) -> float:
        ticks = itertools.accumulate(seconds)
        monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks))
        monkeypatch.setattr(pace, "_MEASURED", {})
        found = measured_pace(CostModel(inputs, H100))
        assert found.layers == 4
        return found.factor

    even = factor(9, 3, 3, 3)
    assert factor(900, 3, 3, 3) == even
    assert factor(9, 6, 6, 6) == pytest.approx(2 * even)
    slow = [factor(9, 300, 3, 3), factor(9, 3, 300, 3), factor(9, 3, 3, 300)]
    assert sum(found == even for found in slow) >= 2


def test_a_large_model_is_probed_in_part(inputs: PreparedStudy) -> None:
    base = base_of_shapes(inputs, 2)
    assert len(base.model.model.layers) == 2
    assert len(inputs.grouping.model.base.model.layers) == 4
    with torch.inference_mode():
        logits = base.logits(RowBatch.of([Row([1, 2, 3], [2])], base.device))
    assert torch.isfinite(logits).all()


def test_nothing_is_measured_without_adapters(tmp_path: Path) -> None:
    arms = [{"method": "full", "lr": 1e-3}]
    full = small_study(tmp_path, arms=arms).check()
    assert measured_pace(CostModel(full, H100)) == Pace(1.0, 0)


def test_a_pace_is_that_of_training_and_scoring(inputs: PreparedStudy) -> None:
    plain, slow = (make_plan(inputs, replace(H100, pace=pace)) for pace in (1.0, 2.0))
    assert slow.stages.training == pytest.approx(2 * plain.stages.training)
    assert slow.stages.scoring == pytest.approx(2 * plain.stages.scoring)
    assert slow.stages.spectra == plain.stages.spectra


def test_new_memory_takes_time_each_time_a_group_begins(tmp_path: Path) -> None:
    """A byte per second; with two rungs, a first seed that is never stopped begins three times."""
    study = small_study(tmp_path, **ADAPTIVE).check()
    machine = replace(H100, new_memory=1e-9)
    plain, slow = make_plan(study, H100), make_plan(study, machine)
    memories = [study.grouping.memory(group, study.config.train) for group in study.groups]
    added = sum(memory.total_bytes - memory.base_bytes for memory in memories)
    assert slow.stages.training - plain.stages.training == pytest.approx(added)
    assert plain.expected_seconds is not None
    assert slow.expected_seconds is not None
    once, often = added, slow.expected_seconds - plain.expected_seconds
    assert once < often < 3 * once
