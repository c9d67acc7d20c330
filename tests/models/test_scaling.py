"""Scaled forms of a tuned model, and of one low-rank update."""

import pytest
import torch
from tiny_models import base_of, delta, logits_of, tiny_llama
from torch import Tensor
from toy_training import trial

from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.multi_lora import dense_weight
from rankscope.models.scaling import scaled_adapter, scaled_model


def moved(base: Base, method: str) -> Adapter:
    """An adapter with B, and DoRA's magnitude, far from its start."""
    adapter = new_adapter(base.model, trial("a", method=method))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (*adapter.b.values(), *adapter.magnitude.values()):
            part.add_(0.05 * torch.randn(part.shape, generator=generator))
    adapter.drop_cached_weights()
    base.multi_lora.attach(adapter)
    return adapter


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_a_scaled_adapter_is_the_base_plus_that_part_of_the_update(
    factor: float, method: str
) -> None:
    base = base_of(tiny_llama())
    adapter = moved(base, method)
    tuned = logits_of(base, "a")
    base.multi_lora.attach(scaled_adapter(adapter, "b", factor, base.linears()))
    merged = base_of(tiny_llama())
    linears = merged.linears()
    for name in adapter.a:
        weight = linears[name].weight
        weight.data += factor * delta(adapter, name, dense_weight(linears[name]))
    torch.testing.assert_close(logits_of(base, "b"), logits_of(merged), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits_of(base, "a"), tuned)  # which is as it was


def test_a_scaled_model_lies_on_the_line_between_base_and_tuned() -> None:
    frozen, tuned = base_of(tiny_llama()), base_of(tiny_llama(seed=1))
    half = dict(scaled_model(frozen, tuned, 0.5).model.named_parameters())
    ends = [dict(base.model.named_parameters()) for base in (frozen, tuned)]
    for name, parameter in half.items():
        torch.testing.assert_close(parameter, (ends[0][name] + ends[1][name]) / 2)
    whole = scaled_model(frozen, tuned, 1.0)
    torch.testing.assert_close(logits_of(whole), logits_of(tuned), rtol=1e-4, atol=1e-5)


# --- what can be done to a low-rank update, against the dense matrix

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
