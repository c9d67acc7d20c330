"""Scaled copies of a tuned model, against merged weights."""

import pytest
import torch
from tiny_models import base_of, delta, logits_of, tiny_llama
from toy_training import trial

from rankscope.extensions.variants.scaling import scaled_adapter, scaled_model
from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import dense_weight


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
