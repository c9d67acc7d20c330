"""Training that goes on from an adapter on disk: where it starts, and where it gets to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import alone
from peft import PeftModel
from recipe import minimal
from tiny_models import IDS, base_of, logits_of, tiny_llama
from torch import Tensor, nn
from toy_training import (
    ATTENTION,
    protocol,
    recipe_steps,
    stop_after,
    toy_rows,
    training_tolerance,
    trial,
)
from trained_adapters import continued, peft_adapter

from rankscope.errors import Interrupted, UserError
from rankscope.models.adapters.folder import load_adapter, save_adapter
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.models.init_context import new_adapter
from rankscope.report.model_card import adapter_card
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import train_group
from rankscope.train.trial_state import TrialState

LEFT = "model.layers.0.self_attn.q_proj"
STEPS = 15
ROWS = toy_rows(30)
RELATIVE = training_tolerance(STEPS)
PROTOCOL = protocol(max_steps=STEPS, schedule="constant", warmup_fraction=0.0)
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "rslora": ({"use_rslora": True}, {"method": "rslora"}),
    "lora+": ({}, {"method": "lora+", "lr_ratio": 4.0}),
    "dora": ({"use_dora": True}, {"method": "dora"}),
    "own ranks": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}, {}),
    "rslora own ranks": (
        # s = 6 / sqrt(4) = 9 / sqrt(9) = 3
        {"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"q_proj": 9}},
        {"method": "rslora"},
    ),
    "one layer": ({"target_modules": [LEFT]}, {"targets": (LEFT,)}),
}
KIND = pytest.mark.parametrize("kind", KINDS)


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over the expected norm."""
    return float((found - expected).detach().norm() / expected.detach().norm())


def parts(state: TrialState) -> dict[str, list[Tensor]]:
    """Module -> A, B and, for DoRA, m, as they are now."""
    assert state.adapter is not None
    return {n: [p.detach() for p in state.adapter.module_parameters(n)] for n in state.adapter.a}


def their_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The same of PEFT's model."""
    found = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            own = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            if len(layer.lora_magnitude_vector):
                own.append(layer.lora_magnitude_vector["default"].weight)
            found[path.removeprefix("base_model.model.")] = own
    return found


@KIND
def test_before_the_first_step_it_is_the_adapter(tmp_path: Path, kind: str) -> None:
    theirs, ours = KINDS[kind]
    model = peft_adapter(tmp_path, **theirs)
    base = base_of(tiny_llama())
    adapter = new_adapter(base.model, continued(tmp_path, **ours))
    base.multi_lora.attach(adapter)
    expected = alone(model, IDS)
    assert relative(logits_of(base, "a"), expected) < RELATIVE
    assert relative(logits_of(base, None), expected) > 0.02
    assert all(parameter.requires_grad for parameter in adapter.parameters())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_rate_near_zero_leaves_it_as_it_was(tmp_path: Path, kind: str) -> None:
    theirs, ours = KINDS[kind]
    model = peft_adapter(tmp_path, **theirs)
    spec = continued(tmp_path, lr=1e-12, **ours)
    (state,) = train_group(base_of(tiny_llama()), [spec], ROWS, PROTOCOL).states
    assert state.failure is None
    for name, expected in their_parts(model).items():
        for found, part in zip(parts(state)[name], expected, strict=True):
            assert relative(found, part) < 1e-9


@KIND
def test_it_goes_where_plain_peft_goes(tmp_path: Path, kind: str) -> None:
    """PEFT loads the same folder to train on, with the loop of the recipe: the same losses, the
    same weights. The trial is in a group with fresh ones, as in any study."""
    theirs, ours = KINDS[kind]
    peft_adapter(tmp_path, **theirs)
    spec = continued(tmp_path, lr=1e-3, seed=3, **ours)
    group = [trial("fresh"), spec, trial("wide", rank=16, seed=1)]
    state = train_group(base_of(tiny_llama()), group, ROWS, PROTOCOL).states[1]

    model = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True).train()
    before = {n: [p.detach().clone() for p in own] for n, own in their_parts(model).items()}
    ratio = spec.lr_ratio or 1
    rates = {
        part: spec.lr * (ratio if side == 1 else 1)
        for own in their_parts(model).values()
        for side, part in enumerate(own)
    }
    steps = recipe_steps(ROWS, PROTOCOL, spec.seed, STEPS)
    losses = minimal().train(model, rates, steps, "constant", 0.0)
    assert [point.loss for point in state.losses] == pytest.approx(losses, rel=RELATIVE)
    found = parts(state)
    assert found.keys() == before.keys()
    for name, expected in their_parts(model).items():
        for ours_now, theirs_now, at_first in zip(found[name], expected, before[name], strict=True):
            assert relative(ours_now, theirs_now) <= RELATIVE
            assert relative(at_first, theirs_now) > 100 * RELATIVE


def test_fresh_neighbors_do_not_notice_it(tmp_path: Path) -> None:
    peft_adapter(tmp_path, use_dora=True)
    fresh = [trial("one"), trial("two", rank=8, method="dora", seed=1)]
    mixed = [fresh[0], continued(tmp_path, "stored", method="dora"), fresh[1]]
    apart = train_group(base_of(tiny_llama()), fresh, ROWS, PROTOCOL).states
    together = train_group(base_of(tiny_llama()), mixed, ROWS, PROTOCOL).states
    for single, packed in zip(apart, together[::2], strict=True):
        losses = [point.loss for point in single.losses]
        assert [point.loss for point in packed.losses] == pytest.approx(losses, rel=RELATIVE)
        for name, own in parts(single).items():
            for found, expected in zip(parts(packed)[name], own, strict=True):
                assert relative(found, expected) <= RELATIVE


@KIND
def test_what_it_became_is_stored_as_what_peft_loads(tmp_path: Path, kind: str) -> None:
    """Ranks of their own and exact module names too."""
    theirs, ours = KINDS[kind]
    peft_adapter(tmp_path / "before", **theirs)
    spec = continued(tmp_path / "before", **ours)
    base = base_of(tiny_llama())
    (state,) = train_group(base, [spec], ROWS, PROTOCOL).states
    assert state.adapter is not None
    (tmp_path / "after").mkdir()
    save_adapter(state.adapter, base.record, tmp_path / "after")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "after").eval()
    expected = logits_of(base, "a")
    assert relative(alone(model, IDS), expected) < RELATIVE
    base.multi_lora.clear()
    base.multi_lora.attach(load_adapter(tmp_path / "after", "b", base.record))
    assert relative(logits_of(base, "b"), expected) < RELATIVE
    card = adapter_card(spec, base.record)
    assert f"| continues the adapter, sha256 | {spec.init_sha256} |" in card


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_an_adapter_that_changes_while_the_study_runs_is_refused(tmp_path: Path, file: str) -> None:
    """Its hash is in the trial's id by then."""
    peft_adapter(tmp_path)
    spec = continued(tmp_path, targets=ATTENTION)
    path = tmp_path / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"adapter {tmp_path}: found a folder that changed while"):
        new_adapter(tiny_llama(), spec)
    path.unlink()
    with pytest.raises(UserError, match=f"adapter {tmp_path}: found a file that cannot be read"):
        new_adapter(tiny_llama(), spec)


def test_stopped_and_resumed_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """The folder is read again and what was trained since is put in its place."""
    peft_adapter(tmp_path / "stored", use_dora=True)
    group = [trial("fresh"), continued(tmp_path / "stored", method="dora", dropout=0.1)]
    whole = train_group(base_of(tiny_llama()), group, ROWS, PROTOCOL).states
    checkpoint = GroupCheckpoint(tmp_path / "checkpoint")
    with pytest.raises(Interrupted):
        train_group(
            base_of(tiny_llama()),
            group,
            ROWS,
            PROTOCOL,
            checkpoint=checkpoint,
            should_stop=stop_after(7),
        )
    resumed = train_group(base_of(tiny_llama()), group, ROWS, PROTOCOL, checkpoint=checkpoint)
    for found, expected in zip(resumed.states, whole, strict=True):
        assert found.losses == expected.losses
        for name, own in parts(expected).items():
            assert all(map(torch.equal, parts(found)[name], own))
