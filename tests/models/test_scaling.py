"""Milder forms of a tuned model: their ends are the base and the model; a factor per layer."""

import pytest
import torch
from tiny_models import base_of, logits_of, tiny_llama
from toy_training import trial

from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import dense_weight
from rankscope.models.scaling import FactorOf, scaled_adapter, scaled_model, variant_factors
from rankscope.records import Variant, trial_of, variant_of


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


def everywhere(strength: float) -> FactorOf:
    return lambda name: strength


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    "variant",
    [Variant("scale", 0.0), Variant("scale", 0.4), Variant("scale", 1.0), Variant("layers", 0.25)],
)
def test_a_scaled_adapter_is_the_base_plus_that_part_of_the_update(
    variant: Variant, method: str
) -> None:
    base = base_of(tiny_llama())
    adapter = moved(base, method)
    tuned = logits_of(base, "a")
    scale = variant_factors(variant, 2)
    base.multi_lora.attach(scaled_adapter(adapter, "b", scale, base.linears()))
    merged = base_of(tiny_llama())
    linears = merged.linears()
    for name in adapter.a:
        weight = linears[name].weight
        weight.data += scale(name) * adapter.delta(name, dense_weight(linears[name]))
    torch.testing.assert_close(logits_of(base, "b"), logits_of(merged), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits_of(base, "a"), tuned)  # which is as it was


def test_a_factor_per_layer_rises_linearly_to_one() -> None:
    """Of three layers from 0.2: 0.2, 0.6 and 1."""
    of = variant_factors(Variant("layers", 0.2), 3)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert [of(name) for name in names] == pytest.approx([0.2, 0.6, 1.0])
    assert of("model.embed_tokens.weight") == pytest.approx(0.2)
    assert of("gpt_neox.embed_in.weight") == pytest.approx(0.2)
    assert of("transformer.wte.weight") == of("transformer.wpe.weight") == pytest.approx(0.2)
    assert of("embed_out.weight") == of("transformer.ln_f.weight") == 1.0
    assert (of("lm_head"), of("model.norm.weight")) == (1.0, 1.0)
    assert variant_factors(Variant("layers", 0.2), 1)(
        "model.layers.0.mlp.up_proj"
    ) == pytest.approx(0.2)


def test_a_scaled_model_lies_on_the_line_between_base_and_tuned() -> None:
    frozen, tuned = base_of(tiny_llama()), base_of(tiny_llama(seed=1))
    half = dict(scaled_model(frozen, tuned, everywhere(0.5)).model.named_parameters())
    ends = [dict(base.model.named_parameters()) for base in (frozen, tuned)]
    for name, parameter in half.items():
        torch.testing.assert_close(parameter, (ends[0][name] + ends[1][name]) / 2)
    whole = scaled_model(frozen, tuned, everywhere(1.0))
    torch.testing.assert_close(logits_of(whole), logits_of(tuned), rtol=1e-4, atol=1e-5)


def test_a_model_id_names_a_trial_and_its_variant() -> None:
    assert (trial_of("base"), variant_of("base")) == ("base", None)
    for variant in (Variant("scale", 0.1 + 0.2), Variant("layers", 1 / 3)):
        model_id = variant.of("0123456789abcdef")
        assert trial_of(model_id) == "0123456789abcdef"
        found = variant_of(model_id)
        assert found is not None
        assert found.of("x") == variant.of("x")
