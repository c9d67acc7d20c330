"""How a plan measures this machine: on steps of a small model, on a layer of a larger one."""

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from architectures import config_of
from pocket_study import small_study

from rankscope.errors import UserError
from rankscope.models.parameters import architecture
from rankscope.run import machines
from rankscope.run.costs import CostModel
from rankscope.run.machines import MACHINES, paced_machine
from rankscope.run.prepared import PreparedStudy
from rankscope.train.memory import MemoryModel


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


def test_the_pace_is_operations_over_the_fastest_time(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer of the pocket model, rows that fill a pass: forward once, and again for the
    gradients of activations, of which attention's two products have two each."""
    monkeypatch.setattr(machines, "SMALL_MODEL", 0)
    monkeypatch.setattr(machines, "_fastest", lambda call, device: 0.25)
    monkeypatch.setattr(machines, "_seconds_of", lambda call, device: 0.0)
    found = paced_machine(inputs)
    task = next(iter(inputs.grouping.counts))
    length = round(inputs.grouping.counts[task].mean_tokens)
    tokens = inputs.config.train.batch_tokens // length * length
    operations = tokens * (2 * 2 * 557_056 / 4 + 6 * 128 * length)
    assert found.rates == {"float32": pytest.approx(operations / 0.25 / 1e12)}
    per_token = CostModel(inputs, found).operations_per_token()
    shown = f"{operations / 0.25 / per_token:,.0f} tokens a second"
    assert found.basis == f"from {shown} of training, measured here"
    assert paced_machine(inputs, MACHINES["h100"]) is MACHINES["h100"]


def test_steps_of_a_small_model_have_the_pace_and_leave_no_trace(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a tenth of a second each: its tokens are those of the first group's step."""
    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr(machines.time, "perf_counter", lambda: next(clock))
    before = torch.get_rng_state()
    found = paced_machine(inputs)
    assert torch.equal(torch.get_rng_state(), before)
    (rate,) = found.rates.values()
    counts = next(iter(inputs.grouping.counts.values()))
    tokens = 2 * 8 * counts.mean_tokens  # two adapters, eight rows each
    per_token = CostModel(inputs, found).operations_per_token()
    assert rate * 1e12 * 0.1 == pytest.approx(per_token * tokens, rel=0.3)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Qwen3", torch.float32), ("Gemma 3", torch.bfloat16), ("Phi-3", torch.float32),
        ("GPT-2", torch.float32),
    ],
)  # fmt: skip
def test_every_architecture_is_measured(
    name: str, dtype: torch.dtype, inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "SMALL_MODEL", 0)
    config = copy.deepcopy(config_of(name))
    config.vocab_size = int(inputs.base.config.vocab_size)
    full = tuple(trial for trial in inputs.trials if trial.is_full)
    trials = tuple(trial.model_copy(update={"targets": ("o_proj",)}) for trial in inputs.trials)
    study = dataclasses.replace(
        inputs,
        base=dataclasses.replace(inputs.base, config=config, shapes=architecture(config)),
        dtype=dtype,
        trials=full if name == "GPT-2" else trials,  # Conv1D takes no adapters
        grouping=dataclasses.replace(
            inputs.grouping, model=MemoryModel(config, dtype, inputs.device)
        ),
    )
    (rate,) = paced_machine(study).rates.values()
    assert 0 < rate < 1000


def test_a_study_that_only_scores_has_a_pace(tmp_path: Path) -> None:
    prompts = small_study(
        tmp_path, arms=[{"method": "prompt", "num_fewshot": 1}], seeds=[0]
    ).check()
    assert paced_machine(prompts).basis.endswith("measured here")


def test_a_model_that_cannot_be_measured_needs_a_given_pace(
    inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "SMALL_MODEL", 0)
    monkeypatch.setattr(machines, "_fastest", None)
    with pytest.raises(UserError, match=r"cannot be measured: .*--tokens-per-second"):
        paced_machine(inputs)
    assert paced_machine(inputs, tokens_per_second=1000.0).label == "this machine"
