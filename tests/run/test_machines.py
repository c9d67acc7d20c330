"""What training steps on this machine make of an estimate."""

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from architectures import config_of
from pocket_study import small_study
from transformers import PretrainedConfig

from rankscope.models.parameters import architecture
from rankscope.run import machines
from rankscope.run.machines import PUBLISHED_UTILIZATION, measured_machine
from rankscope.run.prepared import PreparedStudy
from rankscope.train.memory import MemoryModel


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_MEASURED", {})


def test_the_fastest_step_counts(inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells how long each step takes; the first is not counted. Steps differ in
    tokens, so any of three equal ones may be the fastest, but a slow one changes nothing else."""

    def share(*seconds: float) -> float:
        ticks = itertools.accumulate(seconds)
        monkeypatch.setattr(machines, "now", lambda: next(ticks))
        monkeypatch.setattr(machines, "_MEASURED", {})
        found = measured_machine(inputs)
        assert found.probed_layers == 4
        return found.utilization

    even = share(9, 3, 3, 3)
    assert share(900, 3, 3, 3) == even
    assert share(9, 6, 6, 6) == pytest.approx(even / 2)
    slow = [share(9, 300, 3, 3), share(9, 3, 300, 3), share(9, 3, 3, 300)]
    assert sum(found == even for found in slow) >= 2


def not_measured(inputs: PreparedStudy) -> bool:
    found = measured_machine(inputs)
    return (found.utilization, found.probed_layers) == (PUBLISHED_UTILIZATION, 0)


def on_base(inputs: PreparedStudy, config: PretrainedConfig, dtype: torch.dtype) -> PreparedStudy:
    """The study with the shapes of another base, whose vocabulary holds its tokens."""
    config = copy.deepcopy(config)
    config.vocab_size = int(inputs.base.config.vocab_size)
    base = dataclasses.replace(inputs.base, config=config, shapes=architecture(config))
    memory = MemoryModel(config, dtype, inputs.device)
    trials = tuple(trial.model_copy(update={"targets": ("o_proj",)}) for trial in inputs.trials)
    return dataclasses.replace(
        inputs,
        base=base,
        dtype=dtype,
        trials=trials,
        grouping=dataclasses.replace(inputs.grouping, model=memory),
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("Qwen3", torch.float32), ("Gemma 3", torch.bfloat16), ("Phi-3", torch.float32)],
)
def test_every_architecture_is_probed(name: str, dtype: torch.dtype, inputs: PreparedStudy) -> None:
    config = config_of(name)
    study = on_base(inputs, config, dtype)
    found = measured_machine(study)
    assert found.probed_layers == config.num_hidden_layers
    assert 0 < found.utilization != PUBLISHED_UTILIZATION
    probed = machines.with_layers(study, 1)
    weights = machines.random_base(probed).model.num_parameters()
    assert weights == architecture(probed.base.config).num_parameters  # tied ones once


def test_a_large_model_is_probed_in_part(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take what three of its four layers take, then less than any step."""
    estimates = list[float]()
    estimate = machines.step_seconds

    def recorded(*args: object) -> float:
        estimates.append(estimate(*args))  # type: ignore[arg-type]
        return estimates[-1]

    monkeypatch.setattr(machines, "step_seconds", recorded)
    monkeypatch.setattr(machines, "STEP_SECONDS", 1e9)
    assert measured_machine(inputs).probed_layers == 4
    monkeypatch.setattr(machines, "STEP_SECONDS", 0.8 * estimates[0])
    monkeypatch.setattr(machines, "_MEASURED", {})
    assert measured_machine(inputs).probed_layers == 3
    tried = list[object]()
    monkeypatch.setattr(machines, "_run_steps", lambda *args: tried.append(args))
    monkeypatch.setattr(machines, "_MEASURED", {})
    monkeypatch.setattr(machines, "STEP_SECONDS", 1e-12)
    assert not_measured(inputs)
    assert tried == []


def test_what_cannot_be_probed_is_planned_without(inputs: PreparedStudy, tmp_path: Path) -> None:
    full = small_study(tmp_path, arms=[{"method": "full", "lr": 1e-3}]).check()
    assert not_measured(full)
    limited = dataclasses.replace(
        inputs, config=inputs.config.model_copy(update={"memory_limit": 1000})
    )
    assert not_measured(limited)
