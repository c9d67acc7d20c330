"""Concatenated rows give each row the logits and gradients of transformers' stock attention."""

import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, SHAPE, alone, stock
from tiny_models import VOCABULARY, assert_close, base_of, tiny_llama
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Lfm2Config,
    PreTrainedConfig,
)

from rankscope.errors import UserError
from rankscope.models.attention import kernel, varlen
from rankscope.models.attention.kernel import KernelRows
from rankscope.models.attention.varlen import AttentionPlan, KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.load import check_rows_apart

MIXED = "when another row precedes it"
STATE_SPACE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
STATE_SPACE |= {"mamba_d_state": 8, "mamba_chunk_size": 8}


def token_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_prefixes_selected_with_repeats_and_continued_twice(architecture: str) -> None:
    """Prefixes of uneven length; rows 2, 0, 2 of them each continued by 3, 1, 6 and 1, 2, 1."""
    prefixes = token_rows([8, 3, 14])
    chosen = [2, 0, 2]
    first, second = token_rows([3, 1, 6], seed=1), token_rows([1, 2, 1], seed=2)
    base = base_of(stock(architecture))
    check_rows_apart(base)
    cache = KVCache(3, 14)
    with torch.inference_mode():
        base.logits(RowBatch.of([Row(p, []) for p in prefixes], base.device), cache, store=True)
        assert cache.lengths.tolist() == [8, 3, 14]
        grown = KVCache.of_rows([(cache, torch.tensor(chosen))], 24)
        parts = [
            (KVCache.of_rows([(cache, torch.tensor(own))], 14), torch.tensor([0]))
            for own in ([2], [0])
        ]
        joined = KVCache.of_rows([*parts, (cache, torch.tensor([2]))], 24, empties=True)
        for layer, keys in grown.keys.items():
            assert torch.equal(joined.keys[layer], keys)
            assert torch.equal(joined.values[layer], grown.values[layer])
        assert not any(part.keys or part.values for part in (parts[0][0], parts[1][0], cache))
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


def test_branches_have_the_gradients_of_rows_apart() -> None:
    """A prefix has none: its keys and values are stored without their history."""
    trunk, *branches = token_rows([9, 4, 1, 6])
    model = tiny_llama()
    base = base_of(model)
    weights = [model.get_input_embeddings().weight, model.model.layers[0].self_attn.k_proj.weight]
    for weight in weights:
        weight.requires_grad_(True)
    apart = [
        Row([*trunk, *branch], range(len(trunk) - 1, len(trunk) + len(branch)))
        for branch in branches
    ]
    expected = base.logits(RowBatch.of(apart, base.device))
    lengths = list(map(len, branches))
    keep = range(len(trunk) - 1, len(trunk) + sum(lengths))
    row = Row([*trunk, *(i for branch in branches for i in branch)], keep, branches=lengths)
    batch = RowBatch.of([row], base.device)
    kept = base.logits(batch).split([1, *lengths])
    found = torch.cat([part for of_branch in kept[1:] for part in (kept[0], of_branch)])
    assert_close(found, expected)
    slope = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, slope),
        torch.autograd.grad(expected, weights, slope),
        strict=True,
    ):
        assert_close(ours, theirs)
    with pytest.raises(ValueError, match="no backward pass"):
        base.logits(batch, prefix=KVCache(1, 4))
    with pytest.raises(ValueError, match="a prefix of 2 rows"), torch.inference_mode():
        base.logits(batch, prefix=KVCache(2, 4))


def test_rows_of_an_empty_and_a_filled_prefix_share_a_pass() -> None:
    prefix, other = token_rows([6, 4])
    base = base_of(tiny_llama())
    filled = KVCache(1, 6)
    with torch.inference_mode():
        base.logits(RowBatch.of([Row(prefix, [])], base.device), filled, store=True)
        mixed = KVCache.of_rows([(filled, torch.tensor([0, 0]))], 16)
        mixed.lengths[1] = 0
        batch = RowBatch.of(
            [Row([5, 6, 7], range(3), start=6), Row(other, range(4), start=0)], base.device
        )
        before = {layer: keys.clone() for layer, keys in mixed.keys.items()}
        found = base.logits(batch, mixed)
    # Without ``store`` the cache is read and stays as it is.
    assert mixed.lengths.tolist() == [6, 0]
    assert all(torch.equal(mixed.keys[layer], keys) for layer, keys in before.items())
    model = tiny_llama()
    expected = [alone(model, [*prefix, 5, 6, 7])[6:], alone(model, other)]
    assert_close(found, torch.cat(expected))


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


def test_attention_without_the_plan_is_refused() -> None:
    base = base_of(tiny_llama())
    with pytest.raises(UserError, match="layers that pass no keyword arguments on"):
        base.model(input_ids=torch.tensor([[3, 4]]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SHAPE, query_pre_attn_scalar=8), "softcap"),
        (Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"], block_multiple_of=8), MIXED),
        (FalconH1Config(**SHAPE, **STATE_SPACE), MIXED),
    ],
    ids=["soft-capped logits", "short convolutions", "state space"],
)
def test_architectures_that_cannot_be_used_are_refused(
    config: PreTrainedConfig, message: str
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match=message):
        check_rows_apart(base_of(model))


def test_what_branches_see_is_laid_out_once_for_all_layers() -> None:
    cpu = torch.device("cpu")
    plan = AttentionPlan.of([7, 5], cpu)
    with torch.no_grad():
        plan = plan.with_branches([(2, 2), (1,)], None, cpu)
    mask, narrow = plan.mask(None, cpu), plan.mask(2, cpu)
    assert int(narrow.sum()) < int(mask.sum())
    assert plan.mask(None, cpu) is mask
    assert mask.shape == (2, 1, 7, 7)


# --- how torch's variable-length kernel is called, by a stand-in that does what its page says

LENGTHS = (7, 1, 23, 12)
CALLS: list[int] = []


def by_the_page(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Attention of q (T, H, D), k and v (T, K, D), row by row, in torch's plain attention."""
    CALLS.append(max_q)
    num_tokens, heads, _ = query.shape
    assert key.shape == value.shape
    assert enable_gqa == (heads != key.shape[1])
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    ends = cu_seq_q.tolist()
    assert ends == cu_seq_k.tolist()
    assert (ends[0], ends[-1]) == (0, num_tokens)
    assert max_q == max_k >= max(stop - start for start, stop in pairwise(ends))
    left, right = window_size
    outs = []
    for start, stop in pairwise(ends):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
        place = torch.arange(stop - start)
        before = place[:, None] - place[None, :]
        seen = (before <= (left if left >= 0 else stop)) & (before >= -right)
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this processor had the kernel, in float32 too."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", by_the_page)
    monkeypatch.setattr(varlen, "has_varlen_kernel", lambda device: True)
    monkeypatch.setattr(varlen, "kernel_takes", lambda *_: True)
    CALLS.clear()


def batch(base: Base) -> RowBatch:
    draws = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=draws).tolist() for n in LENGTHS]
    return RowBatch.of([Row(row, range(len(row))) for row in ids], base.device)


def outputs(base: Base) -> list[Tensor]:
    """Logits, and the gradient of the embedding."""
    weight = base.model.get_input_embeddings().weight.requires_grad_()
    logits = base.logits(batch(base))
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    found, weight.grad = weight.grad, None
    assert found is not None
    return [logits.detach(), found]


def stored(base: Base) -> KVCache:
    cache = KVCache(len(LENGTHS), 32)
    with torch.inference_mode():
        base.logits(batch(base), cache, store=True)
    return cache


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernel_gets_rows_scale_and_window(
    architecture: str, request: pytest.FixtureRequest
) -> None:
    base = base_of(stock(architecture))
    expected, cache = outputs(base), stored(base)
    request.getfixturevalue("with_kernel")
    for found, other in zip(outputs(base), expected, strict=True):
        assert float((found - other).norm()) <= 1e-5 * float(other.norm())
    filled = stored(base)
    assert torch.equal(filled.lengths, cache.lengths)
    for layer, keys in cache.keys.items():
        torch.testing.assert_close(filled.keys[layer], keys)
    assert len(CALLS) == 2 * base.record.num_layers
    assert set(CALLS) == {1024}


def test_the_kernel_is_for_cuda_in_16_bits() -> None:
    assert not kernel.has_varlen_kernel(torch.device("cpu"))
    assert not kernel.has_varlen_kernel(torch.device("mps"))
    rows = KernelRows(torch.tensor([1025, 3]), torch.device("cpu"))
    assert (rows.max_length, rows.ends.tolist()) == (2048, [0, 1025, 1028])
    sizes = (12, 64, 192, 200, 224, 232, 256, 264)
    taken = [size for size in sizes if kernel.kernel_takes(size, torch.bfloat16)]
    assert taken == [64, 192, 232, 256]
    assert kernel.kernel_takes(256, torch.float16)
    assert not kernel.kernel_takes(64, torch.float32)
