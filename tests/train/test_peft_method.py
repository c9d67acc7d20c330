"""A method of PEFT's in the loop equals it in plain PyTorch, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model
from recipe import minimal
from tiny_models import tiny_llama
from toy_training import (
    ADALORA,
    ATTENTION,
    DRAWING,
    bits,
    losses,
    peft_trial,
    plain_losses,
    protocol,
    recipe_steps,
    toy_rows,
    trained,
    training_tolerance,
)

from rankscope.models.lora import derive_seed
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult
from rankscope.train.step_schedule import learning_rate

NOTHING = 1e-8
"""AdaLoRA's singular values start at zero and move by 1e-5 in the first steps."""
ROWS = toy_rows(44)
NUM_STEPS = 16
PROTOCOL = protocol(max_steps=NUM_STEPS)
RELATIVE = training_tolerance(NUM_STEPS)


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
    result = trained([spec], PROTOCOL, ROWS)
    model = reference(spec, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    slow = plain_losses(spec, model, dict.fromkeys(parameters, lr), ROWS, PROTOCOL)
    assert losses(result.states[0]) == pytest.approx(slow, rel=RELATIVE)
    assert_same_weights(result, parameters)
    start = [p for p in reference(spec, settings).parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(start, parameters, strict=True))


def test_adalora_equals_its_own_loop_in_plain_pytorch() -> None:
    """PEFT's forward adds the penalty to its loss; its budget moves after every step."""
    spec = peft_trial(seed=2, **ADALORA)
    result = trained([spec], PROTOCOL, ROWS)
    model = reference(spec, ADALORA, total_step=NUM_STEPS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    slow = []
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
        slow.append(total)
    assert losses(result.states[0]) == pytest.approx(slow, rel=RELATIVE)
    assert_same_weights(result, parameters)
    tuner = result.states[0].tuner
    assert tuner is not None
    pattern = tuner.counters()["rank_pattern"]
    assert pattern == model.peft_config["default"].rank_pattern
    # Eight matrices keep three ranks each on average, of six.
    assert sum(map(sum, pattern.values())) == 8 * 3


def test_dropout_acts_in_training_alone_and_storing_between_steps_changes_nothing(
    tmp_path: Path,
) -> None:
    spec = peft_trial(**DRAWING["adalora"])
    plain = trained([spec], PROTOCOL, ROWS)
    training: list[bool] = []

    def after_step(step: int, base: Any, states: Any) -> None:
        training.append(any(module.training for module in base.model.modules()))
        folder = tmp_path / str(step)
        folder.mkdir()
        states[0].tuner.save(base.record, folder)

    assert bits(trained([spec], PROTOCOL, ROWS, callbacks=[after_step])) == bits(plain)
    assert training == [False] * NUM_STEPS
    without = trained([peft_trial(**ADALORA)], PROTOCOL, ROWS)
    assert losses(plain.states[0])[-1] != losses(without.states[0])[-1]
