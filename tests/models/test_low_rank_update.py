"""One low-rank update against the dense matrix."""

import pytest
import torch
from torch import Tensor

from rankscope.models.low_rank_update import LowRankUpdate

SHAPES = [(40, 40), (64, 24), (24, 64)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(m: int, n: int, rank: int) -> LowRankUpdate:
    return LowRankUpdate(gaussian(rank, n, seed=1), 0.7 * gaussian(m, rank, seed=2))


def dora(m: int, n: int, rank: int) -> LowRankUpdate:
    gain = 0.5 + torch.rand(m, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    low = lora(m, n, rank)
    return LowRankUpdate(low.A, low.B, gain, gaussian(m, n, seed=4))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 24, 30])
def test_norm_and_singular_values_without_the_dense_product(
    shape: tuple[int, int], rank: int
) -> None:
    update = lora(*shape, rank)
    sigma = torch.linalg.svdvals(update.B @ update.A)
    values, count = update.singular_values(), min(rank, *shape)
    assert values.shape == (count,)
    torch.testing.assert_close(values, sigma[:count], rtol=1e-10, atol=1e-10)
    assert float(sigma[count:].abs().max() if count < len(sigma) else 0.0) < 1e-10
    assert update.frobenius() == pytest.approx(float(update.dense().norm()), rel=1e-12)


@pytest.mark.parametrize("make", [lora, dora])
@pytest.mark.parametrize("factor", [0.0, 0.4, 30.0])
def test_scaling_scales_the_dense_update(make, factor: float) -> None:  # type: ignore[no-untyped-def]
    update = make(24, 16, 3)
    scaled = update.scaled(factor)
    assert scaled.rank == update.rank
    torch.testing.assert_close(scaled.dense(), factor * update.dense())


def test_truncating_loses_the_smallest_singular_values() -> None:
    """Eckart & Young: the error is the norm of what is cut off, the least any rank 2 can have."""
    update = lora(24, 16, 5)
    small = update.truncated(2)
    assert small.rank == 2
    error = float((update.dense() - small.dense()).norm())
    assert error == pytest.approx(float(update.singular_values()[2:].norm()))
    assert update.truncated(5) is update


def test_a_magnitude_stores_the_gain() -> None:
    """DoRA: m / |W0 + B A| gives the gain back, and B is stored without the scaling."""
    update = dora(24, 16, 3)
    A, B, magnitude = update.to_stored(scaling=2.0)
    assert magnitude is not None
    directed = update.weight + 2 * B @ A  # type: ignore[operator]
    torch.testing.assert_close(magnitude / directed.norm(dim=1), update.gain)
    assert lora(24, 16, 3).to_stored()[2] is None
