"""Scaled copies of a tuned model, W0 + f (W - W0), with one factor f or one per layer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.quantize import dense_weight
from rankscope.records import Variant

INPUT_EMBEDDING = re.compile(r"embed(?!_out)|(?:^|\.)w[tp]e(?:\.|$)")
"""Input embeddings by name: GPT-2 uses wte and wpe; GPT-NeoX's output layer is embed_out."""
FactorOf = Callable[[str], float]  # Name of a module or parameter -> its factor f


def layer_index(name: str) -> int | None:
    """Layer number in a module or parameter path, from 0; None outside the layers."""
    match = re.search(r"(?:^|\.)([0-9]+)\.", name)
    return int(match[1]) if match else None


def module_kind(name: str) -> str:
    """A module's path within its layer, such as ``self_attn.q_proj``."""
    return re.split(r"(?:^|\.)[0-9]+\.", name, maxsplit=1)[-1]


def depth_factors(first: float, last: float, num_layers: int) -> FactorOf:
    """Factors linear in depth (LiNeS, Wang et al., arXiv 2410.17146).

    Layer l of L, from 0, gets first + (last - first) l / (L - 1), where L counts all layers of the
    model. Input embeddings count as layer 0, the final norm and the output layer as the last one.
    In a model of one layer everything gets ``first``.
    """

    def factor_of(name: str) -> float:
        layer = layer_index(name)
        if layer is None:
            layer = 0 if INPUT_EMBEDDING.search(name) else num_layers - 1
        return first + (last - first) * (layer / max(1, num_layers - 1))

    return factor_of


def variant_factors(variant: Variant, num_layers: int) -> FactorOf:
    last = variant.strength if variant.kind == "scale" else 1.0
    return depth_factors(variant.strength, last, num_layers)


def scaled_adapter(
    adapter: Adapter, name: str, factor_of: FactorOf, linears: Mapping[str, nn.Linear]
) -> Adapter:
    """A copy of ``adapter`` under another name, the update of each module scaled by its factor."""
    factors = {module: factor_of(module) for module in adapter.a}
    if not adapter.magnitude and len(set(factors.values())) == 1:
        factor = next(iter(factors.values()))
        alpha, scaling = adapter.alpha * factor, adapter.scaling * factor
        return replace(adapter, name=name, alpha=alpha, scaling=scaling)  # shares A and B

    def update_of(module: str) -> LowRankUpdate:
        weight = dense_weight(linears[module])
        return LowRankUpdate.from_adapter(adapter, module, weight).scaled(factors[module])

    return replaced_updates(adapter, name, update_of)


def replaced_updates(
    adapter: Adapter, name: str, update_of: Callable[[str], LowRankUpdate]
) -> Adapter:
    """A copy of ``adapter`` for inference, under another name, with other updates of its modules,
    which may have other ranks; the scaling stays."""
    copied = replace(adapter, name=name, a={}, b={}, magnitude={}, initial_factors={})
    for module, a in adapter.a.items():
        # One update at a time: DoRA's holds the whole weight in float64.
        factors = update_of(module).to_stored(adapter.scaling)
        places = (copied.a, copied.b, copied.magnitude)
        for place, part in zip(places, factors, strict=True):
            if part is not None:
                values = part.detach().float().to(a.device)
                place[module] = nn.Parameter(values, requires_grad=False)
    return copied


@torch.no_grad()
def scaled_model(frozen: Base, tuned: Base, factor_of: FactorOf) -> Base:
    """A copy of a fully fine-tuned model with every parameter at W0 + f (W - W0), computed in
    float32 and rounded to the base's dtype once."""
    copied, trained = frozen.copied(), dict(tuned.model.named_parameters())
    for name, parameter in copied.model.named_parameters():
        before = parameter.float()
        parameter.copy_(before + factor_of(name) * (trained[name].float() - before))
    return copied
