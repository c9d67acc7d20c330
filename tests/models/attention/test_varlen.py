"""Concatenated rows give each row the logits and gradients of transformers' stock attention."""

import random

import pytest
import torch
from architectures import ARCHITECTURES, SHAPE, alone, stock
from tiny_models import VOCABULARY, assert_close, base_of, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Lfm2Config,
    PreTrainedConfig,
)

from rankscope.errors import UserError
from rankscope.models.attention.products import TreeMask
from rankscope.models.attention.varlen import AttentionPlan, KVCache
from rankscope.models.base import Row, RowBatch
from rankscope.models.load import check_rows_apart


def token_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_kept_positions_come_back_in_order(architecture: str) -> None:
    rows = token_rows([9, 2, 17])
    keeps: list[list[int]] = [[0, 8], [], [3, 4, 16]]
    expected = torch.cat(
        [alone(stock(architecture), ids)[keep] for ids, keep in zip(rows, keeps, strict=True)]
    )
    base = base_of(stock(architecture))
    batch = RowBatch.of([Row(i, k) for i, k in zip(rows, keeps, strict=True)], base.device)
    with torch.inference_mode():
        assert_close(base.logits(batch), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_prefixes_selected_with_repeats_and_continued_twice(architecture: str) -> None:
    """Prefixes of uneven length; rows 2, 0, 2 of them each continued by 3, 1, 6 and 1, 2, 1."""
    prefixes = token_rows([8, 3, 14])
    chosen = [2, 0, 2]
    first, second = token_rows([3, 1, 6], seed=1), token_rows([1, 2, 1], seed=2)
    base = base_of(stock(architecture))
    cache = KVCache(3, 14)
    with torch.inference_mode():
        base.logits(RowBatch.of([Row(p, []) for p in prefixes], base.device), cache, store=True)
        assert cache.lengths.tolist() == [8, 3, 14]
        grown = cache.select(torch.tensor(chosen), 24)
        found = []
        for parts in (first, second):
            rows = [
                Row(part, range(len(part)), start=int(start))
                for part, start in zip(parts, grown.lengths, strict=True)
            ]
            found.append(base.logits(RowBatch.of(rows, base.device), grown, store=True))
    assert grown.lengths.tolist() == [14 + 4, 8 + 3, 14 + 7]
    assert cache.lengths.tolist() == [8, 3, 14]
    model = stock(architecture)
    whole = [
        alone(model, prefixes[row] + a + b)[len(prefixes[row]) :]
        for row, a, b in zip(chosen, first, second, strict=True)
    ]
    cuts = [len(part) for part in first]
    assert_close(found[0], torch.cat([w[:cut] for w, cut in zip(whole, cuts, strict=True)]))
    assert_close(found[1], torch.cat([w[cut:] for w, cut in zip(whole, cuts, strict=True)]))


def test_rows_of_several_caches_stand_in_order_and_leave_the_parts_empty() -> None:
    base = base_of(stock(ARCHITECTURES[0]))
    parts = []
    with torch.inference_mode():
        for lengths, rows in (([8, 3, 14], [2, 0]), ([5, 9], [1, 0, 1])):
            cache = KVCache(len(lengths), max(lengths))
            batch = RowBatch.of([Row(p, []) for p in token_rows(lengths)], base.device)
            base.logits(batch, cache, store=True)
            parts.append((cache, torch.tensor(rows)))
    alone = [cache.select(rows, 20) for cache, rows in parts]
    whole = KVCache.of_rows(parts, 20, empties=True)
    assert whole.lengths.tolist() == [14, 8, 9, 5, 9]
    for layer in alone[0].keys:
        assert torch.equal(whole.keys[layer], torch.cat([c.keys[layer] for c in alone]))
        assert torch.equal(whole.values[layer], torch.cat([c.values[layer] for c in alone]))
    assert not any(cache.keys or cache.values for cache, _ in parts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_shared", [0, 1, 9])
def test_branches_see_their_trunk_themselves_and_what_all_rows_share(
    architecture: str, num_shared: int
) -> None:
    """Trunks of 6, 1 and 20 tokens; branches of 3 and 1, of none, and of 2, 2 and 5."""
    (shared,) = token_rows([num_shared]) if num_shared else ([],)
    trunks = token_rows([6, 1, 20], seed=1)
    branches = [token_rows([3, 1], seed=2), [], token_rows([2, 2, 5], seed=3)]
    model = stock(architecture)
    expected = []
    for trunk, parts in zip(trunks, branches, strict=True):
        expected.append(alone(model, shared + trunk)[num_shared:])
        expected += [alone(model, shared + trunk + p)[num_shared + len(trunk) :] for p in parts]
    base = base_of(stock(architecture))
    rows = [
        Row(
            trunk + [token for part in parts for token in part],
            range(len(trunk) + sum(map(len, parts))),
            start=num_shared,
            branches=[len(part) for part in parts],
        )
        for trunk, parts in zip(trunks, branches, strict=True)
    ]
    with torch.inference_mode():
        cache = None
        if shared:
            cache = KVCache(1, num_shared)
            base.logits(RowBatch.of([Row(shared, [])], base.device), cache, store=True)
        found = base.logits(RowBatch.of(rows, base.device), prefix=cache)
    assert_close(found, torch.cat(expected))


def test_branches_and_prefixes_are_for_scoring() -> None:
    base = base_of(tiny_llama())
    batch = RowBatch.of([Row([3, 4, 5], [2], branches=[1])], base.device)
    with pytest.raises(ValueError, match="no backward pass"):
        base.logits(batch)
    with pytest.raises(ValueError, match="a prefix of 2 rows"), torch.inference_mode():
        base.logits(batch, prefix=KVCache(2, 4))


def test_without_store_a_cache_is_read_and_left_as_it_is() -> None:
    (prefix,) = token_rows([6])
    base = base_of(tiny_llama())
    cache = KVCache(1, 6)
    answers = token_rows([2, 4], seed=1)
    with torch.inference_mode():
        base.logits(RowBatch.of([Row(prefix, [])], base.device), cache, store=True)
        keys = {layer: k.clone() for layer, k in cache.keys.items()}
        for answer in answers:
            batch = RowBatch.of([Row(answer, range(len(answer)), start=6)], base.device)
            assert_close(base.logits(batch, cache), alone(tiny_llama(), prefix + answer)[6:])
    assert cache.lengths.tolist() == [6]
    assert all(torch.equal(cache.keys[layer], keys[layer]) for layer in keys)


def test_rows_of_an_empty_and_a_filled_prefix_share_a_pass() -> None:
    prefix, other = token_rows([6, 4])
    base = base_of(tiny_llama())
    filled = KVCache(1, 6)
    with torch.inference_mode():
        base.logits(RowBatch.of([Row(prefix, [])], base.device), filled, store=True)
        mixed = filled.select(torch.tensor([0, 0]), 16)
        mixed.lengths[1] = 0
        batch = RowBatch.of(
            [Row([5, 6, 7], range(3), start=6), Row(other, range(4), start=0)], base.device
        )
        found = base.logits(batch, mixed)
    model = tiny_llama()
    expected = [alone(model, [*prefix, 5, 6, 7])[6:], alone(model, other)]
    assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_padded_stock_model(architecture: str) -> None:
    rows = token_rows([9, 2, 17, 1, 12])
    width = max(map(len, rows))
    weight = torch.randn(
        sum(map(len, rows)), VOCABULARY, generator=torch.Generator().manual_seed(0)
    )

    padded = stock(architecture)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    logits = padded(input_ids=ids, attention_mask=mask).logits
    (logits[mask.bool()] * weight).sum().backward()

    base = base_of(stock(architecture))
    base.model.requires_grad_(True)
    batch = RowBatch.of([Row(row, range(len(row))) for row in rows], base.device)
    (base.logits(batch) * weight).sum().backward()
    found = dict(base.model.named_parameters())
    for name, parameter in padded.named_parameters():
        assert parameter.grad is not None
        gradient = found[name].grad
        assert gradient is not None
        # A key bias moves all scores of a query group: its gradient is zero but for rounding.
        noise = 1e-4 if name.endswith("k_proj.bias") else 0.0
        assert float((gradient - parameter.grad).norm()) <= max(
            1e-5 * float(parameter.grad.norm()), noise
        ), name


def test_bfloat16_stays_within_two_percent_of_the_stock_model() -> None:
    """bfloat16 keeps 8 bits: one rounding is up to 0.4 %, and these pass through two layers."""
    rows = token_rows([9, 2, 17, 1, 12])
    expected = torch.cat([alone(tiny_llama().bfloat16(), ids) for ids in rows]).float()
    base = base_of(tiny_llama().bfloat16())
    with torch.inference_mode():
        batch = RowBatch.of([Row(ids, range(len(ids))) for ids in rows], base.device)
        found = base.logits(batch)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, relative=0.02)


def test_a_plan_goes_to_rows_and_back() -> None:
    plan = AttentionPlan.of([3, 1, 2], torch.device("cpu"))
    x = torch.arange(6.0).reshape(1, 1, 6, 1)
    rows = plan.rows(x)
    assert rows.shape == (3, 1, 3, 1)
    # Padding repeats the row's own first token, never a neighbor's.
    assert rows[:, 0, :, 0].tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 4]]
    assert torch.equal(plan.tokens(rows.transpose(1, 2)), x.transpose(1, 2))


def test_soft_capped_logits_are_refused() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, query_pre_attn_scalar=8)).eval()
    with pytest.raises(UserError, match="softcap"):
        check_rows_apart(base_of(model))


def test_attention_without_the_plan_is_refused() -> None:
    base = base_of(tiny_llama())
    with pytest.raises(UserError, match="layers that pass no keyword arguments on"):
        base.model(input_ids=torch.tensor([[3, 4]]))


@pytest.mark.parametrize(
    "config",
    [
        Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"], block_multiple_of=8),
        FalconH1Config(
            **SHAPE,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
    ],
    ids=["short convolutions", "state space"],
)
def test_architectures_that_mix_rows_are_refused(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="when another row precedes it"):
        check_rows_apart(base_of(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_that_keep_rows_apart_pass(architecture: str) -> None:
    check_rows_apart(base_of(stock(architecture)))


def test_what_branches_see_is_laid_out_once_for_all_layers() -> None:
    branches = TreeMask([7, 5], [(2, 2), (1,)])
    cpu = torch.device("cpu")
    mask = branches.wide_mask(3, None, cpu)
    assert branches.wide_mask(3, None, cpu) is mask
    narrow = branches.wide_mask(3, 2, cpu)
    assert int(narrow.sum()) < int(mask.sum())
    assert branches.wide_mask(3, None, cpu) is mask
    assert branches.wide_mask(0, None, cpu).shape == (2, 1, 7, 7)
