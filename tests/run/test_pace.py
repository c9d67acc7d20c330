"""What training steps on this machine make of an estimate."""

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from architectures import SHAPE, config_of
from pocket_study import small_study
from transformers import Phi3Config, PretrainedConfig

from rankscope.models.parameters import architecture
from rankscope.run import pace
from rankscope.run.costs import CostModel
from rankscope.run.machines import MACHINES
from rankscope.run.pace import Pace, measured_pace
from rankscope.run.plan import make_plan
from rankscope.run.prepared import PreparedStudy
from rankscope.train.memory import MemoryModel

H100 = MACHINES["h100"]
LONGROPE = Phi3Config(
    **SHAPE,
    original_max_position_embeddings=64,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "long_factor": [1.0] * 4,
        "short_factor": [1.0] * 4,
    },
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_MEASURED", {})


def test_the_fastest_step_counts(inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells how long each step takes; the first is not counted. Steps differ in
    tokens, so any of three equal ones may be the fastest, but a slow one changes nothing else."""

    def factor(*seconds: float) -> float:
        ticks = itertools.accumulate(seconds)
        monkeypatch.setattr(pace, "now", lambda: next(ticks))
        monkeypatch.setattr(pace, "_MEASURED", {})
        found = measured_pace(CostModel(inputs, H100))
        assert found.layers == 4
        return found.factor

    even = factor(9, 3, 3, 3)
    assert factor(900, 3, 3, 3) == even
    assert factor(9, 6, 6, 6) == pytest.approx(2 * even)
    slow = [factor(9, 300, 3, 3), factor(9, 3, 300, 3), factor(9, 3, 3, 300)]
    assert sum(found == even for found in slow) >= 2


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Qwen3", "Gemma 3", "Phi-3", "longrope"])
def test_every_architecture_is_probed(name: str, dtype: torch.dtype, inputs: PreparedStudy) -> None:
    config = LONGROPE if name == "longrope" else config_of(name)
    study = on_base(inputs, config, dtype)
    found = measured_pace(CostModel(study, H100))
    assert found.layers == config.num_hidden_layers
    assert found.factor > 0
    probed = pace.with_layers(study, 1)
    weights = pace.random_base(probed).model.num_parameters()
    assert weights == architecture(probed.base.config).num_parameters  # tied ones once


def test_a_large_model_is_probed_in_part(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take what three of its four layers take, then less than any step."""
    model, estimates = CostModel(inputs, H100), list[float]()
    estimate = pace.step_seconds

    def recorded(*args: object) -> float:
        estimates.append(estimate(*args))  # type: ignore[arg-type]
        return estimates[-1]

    monkeypatch.setattr(pace, "step_seconds", recorded)
    monkeypatch.setattr(pace, "STEP_SECONDS", 1e9)
    assert measured_pace(model).layers == 4
    monkeypatch.setattr(pace, "STEP_SECONDS", 0.8 * estimates[0])
    monkeypatch.setattr(pace, "_MEASURED", {})
    assert measured_pace(model).layers == 3
    monkeypatch.setattr(pace, "STEP_SECONDS", 1e-12)
    assert measured_pace(model) == Pace()


def test_what_cannot_be_probed_is_planned_without(inputs: PreparedStudy, tmp_path: Path) -> None:
    full = small_study(tmp_path, arms=[{"method": "full", "lr": 1e-3}]).check()
    assert measured_pace(CostModel(full, H100)) == Pace()
    limited = dataclasses.replace(
        inputs, config=inputs.config.model_copy(update={"memory_limit": 1000})
    )
    assert measured_pace(CostModel(limited, H100)) == Pace()


def test_targets_in_layers_that_do_not_run_are_planned_without(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = tuple(
        trial.model_copy(update={"targets": ("layers.3.self_attn.q_proj",)})
        for trial in inputs.trials
        if not trial.is_full
    )
    model = CostModel(dataclasses.replace(inputs, trials=trials), H100)
    assert measured_pace(model).layers == 4
    monkeypatch.setattr(pace, "_MEASURED", {})
    train = inputs.config.train
    rows = train.batch_size * train.gradient_accumulation
    probes = [pace.probe_trial(trials[0], trials[0].rank or 1, seed) for seed in (0, 1)]
    seconds = pace.step_seconds(model, pace.with_rows(model.inputs, probes, rows))
    monkeypatch.setattr(pace, "STEP_SECONDS", 0.6 * seconds)
    assert measured_pace(model) == Pace()


def test_a_pace_is_that_of_training_and_scoring(inputs: PreparedStudy) -> None:
    plain, slow = (make_plan(inputs, dataclasses.replace(H100, pace=own)) for own in (1.0, 2.0))
    assert slow.stages.training == pytest.approx(2 * plain.stages.training)
    assert slow.stages.scoring == pytest.approx(2 * plain.stages.scoring)
    assert slow.stages.analyses["spectra"] == plain.stages.analyses["spectra"]


def test_a_group_touches_its_memory_each_time_it_begins(tmp_path: Path) -> None:
    """A byte per second. With a rung, the first seed of the one rate that a rank has begins twice;
    later seeds begin alone, and once if they are trained."""
    settings = {"strategy": "adaptive", "rungs": [0.5], "seeds": [0]}
    study = small_study(tmp_path, **settings).check()
    machine = dataclasses.replace(H100, first_touch=1e-9)
    plain, slow = make_plan(study, H100), make_plan(study, machine)
    memories = [study.grouping.memory(group, study.config.train) for group in study.groups]
    added = sum(memory.total_bytes - memory.base_bytes for memory in memories)
    assert slow.stages.starting - plain.stages.starting == pytest.approx(added)
    assert plain.expected_seconds is not None
    assert slow.expected_seconds is not None
    often = slow.expected_seconds - plain.expected_seconds
    assert added < often <= 2 * added * (1 + 1e-9)
