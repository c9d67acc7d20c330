"""A trained model's variants: the same weights, scaled without training, to be scored again."""

import torch
from torch import Tensor

from rankscope.analyses.spectra import SpectraConfig
from rankscope.analyses.spectra.intruders import control_factor, scale_intruders
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.quantize import dense_weight
from rankscope.models.scaling import replaced_updates, scaled_adapter, scaled_model, variant_factors
from rankscope.models.svd_cache import SvdCache, decomposition_device
from rankscope.records import Variant


def adapter_variant(
    adapter: Adapter,
    name: str,
    variant: Variant,
    base: Base,
    settings: SpectraConfig,
    svds: SvdCache,
) -> Adapter:
    """The variant of an adapter, under another name: a factor for the whole update or per layer,
    scaled intruder dimensions, the update of each matrix scaled to the same Frobenius norm, or
    truncated."""
    linears, device = base.linears(), decomposition_device(base.device)
    if variant.kind in ("scale", "layers"):
        factor_of = variant_factors(variant, base.record.num_layers)
        return scaled_adapter(adapter, name, factor_of, linears)

    def update_of(module: str) -> LowRankUpdate:
        weight = dense_weight(linears[module]).to(device)
        update = LowRankUpdate.from_adapter(adapter, module, weight)
        if variant.kind == "truncated":
            return update.truncated(round(variant.strength))
        delta, svd = update.dense(), svds.of(module, weight)
        change = scale_intruders(weight, delta, svd, variant.strength, settings)
        if variant.kind == "control":
            return update.scaled(control_factor(delta, *change))
        return update.plus(*change)

    return replaced_updates(adapter, name, update_of)


def full_model_variant(
    base: Base,
    tuned: Base,
    variant: Variant,
    matrices: list[str],
    settings: SpectraConfig,
    svds: SvdCache,
) -> Base:
    """The variant of a fully fine-tuned model: a copy. Intruder dimensions are scaled in
    ``matrices`` only, whose spectra the study compares; the other parameters stay as tuned."""
    if variant.kind in ("scale", "layers"):
        return scaled_model(base, tuned, variant_factors(variant, base.record.num_layers))
    model = scaled_model(base, tuned, lambda name: 1.0)
    linears, base_linears = model.linears(), base.linears()
    device = decomposition_device(base.device)
    for name in matrices:
        weight = dense_weight(base_linears[name]).to(device)
        delta: Tensor = linears[name].weight.detach().to(device).float() - weight.float()
        svd = svds.of(name, weight)
        left, right = scale_intruders(weight, delta, svd, variant.strength, settings)
        if variant.kind == "control":
            delta = control_factor(delta, left, right) * delta
        else:
            delta = delta + (left @ right).float()
        with torch.no_grad():
            linears[name].weight.copy_(weight.float() + delta)
    return model
