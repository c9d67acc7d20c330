"""How torch's variable-length kernel is called: by a stand-in that does what its page says."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, stock
from tiny_models import VOCABULARY, base_of
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from rankscope.models.attention import kernel, varlen
from rankscope.models.attention.kernel import KernelRows
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch

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
    monkeypatch.setattr(KernelRows, "fits", lambda self, query: True)
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
    fitting = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    assert rows.fits(fitting)
    assert not rows.fits(fitting.float())
    assert not rows.fits(torch.zeros(3, 2, 256, dtype=torch.bfloat16))
    assert not rows.fits(torch.zeros(3, 2, 12, dtype=torch.bfloat16))
