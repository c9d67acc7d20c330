"""Attention by plain products is attention: against torch's own, row by row, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankscope.models.attention.products import (
    QUERY_BLOCK,
    RowLayout,
    _group_by_length as group_by_length,
    causal_products,
)

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def one_by_one(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Each row by itself through scaled_dot_product_attention."""
    parts = []
    for row in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        heads = [x.transpose(0, 1)[None] for x in row]
        out = F.scaled_dot_product_attention(*heads, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(("num_heads", "num_kv"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(
    "lengths",
    [
        [7],
        [1, 1, 1],
        [5, 9, 1, 5, 8, 30],
        [QUERY_BLOCK + i for i in (0, 1, QUERY_BLOCK + 3, -1)],  # blocks, cut and uncut
    ],
)
def test_values_and_gradients_are_attentions(
    num_heads: int, num_kv: int, lengths: list[int]
) -> None:
    size, scale = 8, 0.3
    q = drawn(sum(lengths), num_heads, size, seed=0)
    k, v = (drawn(sum(lengths), num_kv, size, seed=s) for s in (1, 2))
    above = drawn(sum(lengths), num_heads, size, seed=3).detach()
    found = causal_products(q, k, v, RowLayout(lengths, CPU), scale)
    expected = one_by_one(q, k, v, lengths, scale)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, [q, k, v], above),
        torch.autograd.grad(expected, [q, k, v], above),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_bfloat16_is_as_near_as_torchs_own() -> None:
    """Both round scores or probabilities; neither may be much further from the truth."""
    lengths = [200, 150, 60]
    arguments = [drawn(sum(lengths), heads, 64, seed=heads) for heads in (6, 2, 2)]
    truth = one_by_one(*arguments, lengths, 0.125)
    rounded = [x.detach().bfloat16() for x in arguments]
    found = causal_products(*rounded, RowLayout(lengths, CPU), 0.125)
    torchs = one_by_one(*rounded, lengths, 0.125)
    errors = [((x.double() - truth).norm() / truth.norm()).item() for x in (found, torchs)]
    assert errors[0] < 1.5 * errors[1]


def test_a_row_of_nan_stays_the_only_one() -> None:
    lengths = [19, 20, 18, 20]  # one group, two rows with padding
    q, k, v = (drawn(sum(lengths), 2, 8, seed=s) for s in range(3))
    for bad in range(len(lengths)):
        spoiled = [x.detach().clone() for x in (q, k, v)]
        for x in spoiled:
            x.split(lengths)[bad].fill_(float("nan"))
            x.requires_grad_()
        out = causal_products(*spoiled, RowLayout(lengths, CPU), 0.3)
        grads = torch.autograd.grad(out.sum(), spoiled)
        for x in (out.detach(), *grads):
            finite = [bool(torch.isfinite(row).all()) for row in x.split(lengths)]
            assert finite == [row != bad for row in range(len(lengths))]


def test_rows_of_like_length_share_a_group() -> None:
    # 1.15 x 100 = 115: the group of 115 reaches down to 100.
    assert group_by_length([100, 115, 99, 30]) == [[1, 0], [2], [3]]
    assert group_by_length([4, 4, 4]) == [[0, 1, 2]]
