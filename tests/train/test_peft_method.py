"""A method of PEFT's in the loop equals it in plain PyTorch, and resumes bit for bit."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model
from recipe import minimal
from tiny_models import base_of, tiny_llama
from toy_training import (
    ATTENTION,
    peft_trial,
    protocol,
    recipe_steps,
    stop_after,
    toy_rows,
    training_tolerance,
)

from rankscope.errors import Interrupted
from rankscope.hashing import sha256_tensors
from rankscope.models.lora import derive_seed
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.step_schedule import learning_rate

NOTHING = 1e-8
"""AdaLoRA's singular values start at zero and move by 1e-5 in the first steps."""
ROWS = toy_rows(44)
PROTOCOL = protocol(epochs=2)
NUM_STEPS = 16  # 44 rows, 6 a step, 2 epochs
RELATIVE = training_tolerance(NUM_STEPS)
ADALORA: dict[str, Any] = {
    "peft_type": "ADALORA",
    "init_r": 6,
    "target_r": 3,
    "tinit": 3,
    "tfinal": 5,
    "deltaT": 2,
}


def reference(spec: TrialSpec, settings: dict[str, Any], **more: Any) -> PeftModel:
    """PEFT's own model with the start that the trial's seed gives."""
    settings = dict(settings)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[settings.pop("peft_type")]
    torch.manual_seed(derive_seed("init", spec.seed, "peft"))
    model = tiny_llama()
    torch.manual_seed(derive_seed("init", spec.seed, "peft"))
    config = kind(task_type="CAUSAL_LM", target_modules=list(ATTENTION), **settings, **more)
    return get_peft_model(model, config)


def assert_same_weights(result: GroupResult, expected: list[torch.nn.Parameter]) -> None:
    for ours, theirs in zip(result.states[0].parameters, expected, strict=True):
        gap = float((ours - theirs).detach().norm())
        assert gap <= RELATIVE * float(theirs.detach().norm()) + NOTHING


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({"peft_type": "VERA", "r": 16}, 1e-2),
        ({"peft_type": "OFT", "oft_block_size": 8}, 1e-3),
        ({"peft_type": "IA3", "feedforward_modules": ["o_proj"]}, 1e-2),
        ({"peft_type": "LORA", "r": 4, "use_dora": True, "bias": "lora_only"}, 1e-3),
    ],
    ids=["vera", "oft", "ia3", "dora"],
)
def test_it_equals_peft_in_plain_pytorch(settings: dict[str, Any], lr: float) -> None:
    spec = peft_trial(lr=lr, seed=1, **settings)
    result = train_group(base_of(tiny_llama()), [spec], ROWS, PROTOCOL)
    model = reference(spec, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = minimal().train(
        model, dict.fromkeys(parameters, lr), recipe_steps(ROWS, PROTOCOL, spec.seed, NUM_STEPS)
    )
    assert [p.loss for p in result.states[0].losses] == pytest.approx(losses, rel=RELATIVE)
    assert_same_weights(result, parameters)
    start = [p for p in reference(spec, settings).parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(start, parameters, strict=True))


def test_adalora_equals_its_own_loop_in_plain_pytorch() -> None:
    """PEFT's forward adds the penalty to its loss; its budget moves after every step."""
    spec = peft_trial(seed=2, **ADALORA)
    result = train_group(base_of(tiny_llama()), [spec], ROWS, PROTOCOL)
    model = reference(spec, ADALORA, total_step=NUM_STEPS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    losses = []
    for step, micro_batches in enumerate(recipe_steps(ROWS, PROTOCOL, spec.seed, NUM_STEPS)):
        batches = [minimal().padded(rows) for rows in micro_batches]
        num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in batches)
        total = 0.0
        for ids, mask, labels in batches:
            out = model(input_ids=ids, attention_mask=mask, labels=labels)
            flat, wanted = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(flat, wanted, reduction="sum") / num_labels
            penalty = out.loss - F.cross_entropy(flat, wanted)
            (loss + penalty / len(batches)).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, PROTOCOL.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(spec.lr, step, NUM_STEPS, "linear", 0.1)
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        losses.append(total)
    assert [p.loss for p in result.states[0].losses] == pytest.approx(losses, rel=RELATIVE)
    assert_same_weights(result, parameters)
    tuner = result.states[0].tuner
    assert tuner is not None
    pattern = tuner.counters()["rank_pattern"]
    assert pattern == model.peft_config["default"].rank_pattern
    # Eight matrices keep three ranks each on average, of six.
    assert sum(map(sum, pattern.values())) == 8 * 3


WITH_DROPOUT: dict[str, dict[str, Any]] = {
    "adalora": {**ADALORA, "lora_dropout": 0.2},
    "loha": {"peft_type": "LOHA", "r": 4, "module_dropout": 0.1, "rank_dropout": 0.2},
}


@cache
def undisturbed(name: str) -> GroupResult:
    """One of them, trained in one go; several tests compare with it."""
    return train_group(base_of(tiny_llama()), [peft_trial(**WITH_DROPOUT[name])], ROWS, PROTOCOL)


def weights_and_counters(result: GroupResult) -> list[object]:
    return [(sha256_tensors(state.tensors()), state.counters()) for state in result.states]


@pytest.mark.parametrize("name", WITH_DROPOUT)
@pytest.mark.parametrize("stop_at", [1, 13])
def test_stopped_at_any_step_it_ends_with_the_same_bits(
    tmp_path: Path, name: str, stop_at: int
) -> None:
    spec = peft_trial(**WITH_DROPOUT[name])

    def train(stop: int) -> list[object]:
        result = train_group(
            base_of(tiny_llama()),
            [spec],
            ROWS,
            PROTOCOL,
            checkpoint=GroupCheckpoint(tmp_path),
            should_stop=stop_after(stop),
        )
        return weights_and_counters(result)

    expected = weights_and_counters(undisturbed(name))
    with pytest.raises(Interrupted):
        train(stop_at)
    torch.rand(7)  # what other code draws in between must not matter
    assert train(0) == expected


def test_dropout_acts_in_training_and_not_between_steps() -> None:
    without = peft_trial(**ADALORA)
    spec = peft_trial(**WITH_DROPOUT["adalora"])
    first = train_group(base_of(tiny_llama()), [without], ROWS, PROTOCOL)
    base = base_of(tiny_llama())
    training: list[bool] = []

    def after_step(step: int, base: Any, states: Any) -> None:
        training.append(any(module.training for module in base.model.modules()))

    second = train_group(base, [spec], ROWS, PROTOCOL, callbacks=[after_step])
    assert training == [False] * NUM_STEPS
    assert first.states[0].losses[-1].loss != second.states[0].losses[-1].loss


def test_what_is_stored_between_two_steps_changes_nothing(tmp_path: Path) -> None:
    spec, plain = peft_trial(**WITH_DROPOUT["adalora"]), undisturbed("adalora")

    def after_step(step: int, base: Any, states: Any) -> None:
        folder = tmp_path / str(step)
        folder.mkdir()
        states[0].tuner.save(base.record, folder)

    stored = train_group(base_of(tiny_llama()), [spec], ROWS, PROTOCOL, callbacks=[after_step])
    assert weights_and_counters(stored) == weights_and_counters(plain)


@pytest.mark.parametrize(
    "settings",
    [*WITH_DROPOUT.values(), {"peft_type": "PVERA", "r": 8}],
    ids=[*WITH_DROPOUT, "pvera"],
)
def test_what_it_draws_does_not_depend_on_the_size_of_a_pass(settings: dict[str, Any]) -> None:
    spec = peft_trial(**settings)
    small, large = (
        train_group(base_of(tiny_llama()), [spec], ROWS, protocol(batch_tokens=tokens))
        for tokens in (64, 4096)
    )
    assert small.states[0].losses == large.states[0].losses
    assert sha256_tensors(small.states[0].tensors()) == sha256_tensors(large.states[0].tensors())


def test_recomputed_layers_give_the_same_bits() -> None:
    spec, kept = peft_trial(**WITH_DROPOUT["loha"]), undisturbed("loha")
    recomputing = protocol(epochs=2, gradient_checkpointing=True)
    again = train_group(base_of(tiny_llama()), [spec], ROWS, recomputing)
    assert kept.states[0].losses == again.states[0].losses
    for a, b in zip(kept.states[0].parameters, again.states[0].parameters, strict=True):
        assert torch.equal(a, b)
