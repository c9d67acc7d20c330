"""The base and its batches: rows laid end to end, copies of their own, a guarded attention."""

import pytest
import torch
from tiny_models import base_of, tiny_llama
from toy_training import trial

from rankscope.hashing import sha256_tensors
from rankscope.models.attention import varlen
from rankscope.models.base import Row, RowBatch, batches_of
from rankscope.models.init_context import new_adapter
from rankscope.models.multi_lora import AdapterSpan, MultiLoraLinear

CPU = torch.device("cpu")


def test_a_batch_lays_rows_end_to_end_by_hand() -> None:
    batch = RowBatch.of(
        [
            Row([5, 6, 7], [0, 2], "a"),
            Row([8], [0], "a"),
            Row([9, 10], [1], None, start=4),
            Row([11], [], "a"),
        ],
        CPU,
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 4, 5, 0]]
    assert batch.lengths == (3, 1, 2, 1)
    # Rows of one adapter_name join only where they stand together.
    assert batch.segments == (
        AdapterSpan("a", 0, 4),
        AdapterSpan(None, 4, 6),
        AdapterSpan("a", 6, 7),
    )
    assert batch.keep.tolist() == [0, 2, 3, 5]


def test_a_trainable_copy_is_float32_and_shares_nothing_with_the_base() -> None:
    base = base_of(tiny_llama().bfloat16())
    base.multi_lora.attach(new_adapter(base.model, trial("a")))
    base.multi_lora.clear()
    before = sha256_tensors(dict(base.model.named_parameters()))
    copied = base.trainable_copy()
    assert not any(isinstance(module, MultiLoraLinear) for module in copied.model.modules())
    assert {p.dtype for p in copied.model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in copied.model.parameters())
    for name, parameter in tiny_llama().bfloat16().named_parameters():
        assert torch.equal(copied.model.get_parameter(name), parameter.float())
    with torch.no_grad():
        for parameter in copied.model.parameters():
            parameter.add_(1.0)
    copied.model.set_attn_implementation("sdpa")
    assert sha256_tensors(dict(base.model.named_parameters())) == before
    base.logits(RowBatch.of([Row([3, 4], [1])], CPU))


def test_another_models_switch_on_a_shared_config_is_noticed() -> None:
    base = base_of(tiny_llama())
    batch = RowBatch.of([Row([3, 4, 5], [2]), Row([6, 7], [1])], base.device)
    with torch.inference_mode():
        base.logits(batch)
        neighbor = type(base.model)(base.model.config)
        neighbor.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match=f"expected {varlen.NAME!r}"):
            base.logits(batch)
        base.model.set_attn_implementation(varlen.NAME)
        base.logits(batch)


def test_batches_hold_every_row_once_within_the_limit() -> None:
    rows = [Row(ids, []) for ids in [[3] * n for n in (5, 5, 30, 1, 1, 9)]]
    batches = list(batches_of(rows, 10))
    assert [row for batch in batches for row in batch] == rows
    # The row of 30 is longer than the limit and stands alone.
    assert [[len(row.ids) for row in batch] for batch in batches] == [[5, 5], [30], [1, 1], [9]]
