"""Full fine-tuning's options, and recomputed activations in a group."""

import sys

import pytest
import torch
from tiny_models import base_of, tiny_llama
from toy_training import EVERY_METHOD, full_trial, losses, protocol, toy_rows, trained, trial

from rankscope.errors import UserError
from rankscope.models.base import (
    Row,
    RowBatch,
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)

ROWS = toy_rows()


# --- bfloat16 products, float32 weights


def test_steps_too_small_for_bfloat16_are_not_lost() -> None:
    """A rate of 1e-6 moves weights of about 0.02 by less than bfloat16's 8 bits can hold."""
    start = tiny_llama().bfloat16()
    result = trained([full_trial(lr=1e-6)], dtype=torch.bfloat16)
    moved = unseen = total = 0
    for before, after in zip(start.parameters(), result.tuned.model.parameters(), strict=True):
        change = after.detach() != before.float()
        moved += int(change.sum())
        unseen += int((change & (after.detach().bfloat16() == before)).sum())
        total += before.numel()
    assert moved > 0.5 * total
    assert unseen > 0.9 * moved


def test_bfloat16_products_follow_the_float32_losses() -> None:
    # Four rows, learned by heart. Products carry 8 bits, relative 4e-3 each.
    train = protocol(batch_size=4, gradient_accumulation=1, epochs=30)
    runs = [
        trained([full_trial(lr=3e-3)], train, ROWS[:4], dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    single, mixed = (losses(run.states[0]) for run in runs)
    assert single[-1] < 0.5 * single[0]
    assert mixed != single
    for a, b in zip(single, mixed, strict=True):
        assert b == pytest.approx(a, rel=2e-2, abs=0.02 * single[0])


# --- AdamW in 8 bits


def test_eight_bit_moments_are_kept_and_train_alike() -> None:
    # bitsandbytes keeps the moments of parameters below 4096 values in float32.
    plain = trained([full_trial()])
    eight = trained([full_trial()], protocol(optimizer="adamw8bit"))
    state = eight.states[0].optimizer.state
    large = [p for p in eight.states[0].parameters if p.numel() >= 4096]
    assert large
    assert all(state[p]["state1"].dtype == torch.uint8 for p in large)
    for a, b in zip(plain.states[0].losses, eight.states[0].losses, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=2e-2)
    assert plain.states[0].losses[-1] != eight.states[0].losses[-1]
    start = tiny_llama().state_dict()
    trained_alike = [
        torch.cat([(p - start[n]).flatten() for n, p in r.tuned.model.state_dict().items()])
        for r in (plain, eight)
    ]
    # A moment's 8 bits are off by at most 1/127 of its block's largest at its place on the scale.
    assert float(torch.cosine_similarity(*trained_alike, dim=0)) > 0.95


def test_adapters_have_adamw_whatever_the_option() -> None:
    result = trained([trial()], protocol(optimizer="adamw8bit"))
    assert type(result.states[0].optimizer) is torch.optim.AdamW


def test_without_the_package_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"bitsandbytes, .*; pip install 'rankscope\[gpu\]'"):
        trained([full_trial()], protocol(optimizer="adamw8bit"))


# --- recomputed activations


def test_recomputed_layers_keep_little_and_are_as_before_afterwards() -> None:
    result = trained(EVERY_METHOD, protocol(max_steps=1, warmup_fraction=0))
    base = result.tuned
    adapter_names = [state.adapter_name for state in result.states]
    batch = RowBatch.of(
        [Row(ROWS[0].input_ids, [1], adapter_name) for adapter_name in adapter_names], base.device
    )

    def kept_bytes() -> int:
        sizes: dict[int, int] = {}

        def group(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        base.multi_lora.training = True
        with torch.autograd.graph.saved_tensors_hooks(group, lambda tensor: tensor):
            base.logits(batch).sum().backward()
        base.multi_lora.training = False
        return sum(sizes.values())

    before = kept_bytes()
    enable_gradient_checkpointing(base.model, base.multi_lora)
    recomputed = kept_bytes()
    disable_gradient_checkpointing(base.model)
    assert recomputed < before / 4
    assert kept_bytes() == before
    assert not any("forward" in vars(module) for module in base.model.modules())


def test_a_model_that_marks_no_layer_is_refused() -> None:
    base = base_of(tiny_llama())
    with pytest.raises(UserError, match="marks no layer"):
        enable_gradient_checkpointing(base.model.lm_head, base.multi_lora)
