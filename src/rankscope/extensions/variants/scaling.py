"""Scaled copies of a tuned model, W0 + f (W - W0)."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.quantize import dense_weight


def scaled_adapter(
    adapter: Adapter, name: str, factor: float, linears: Mapping[str, nn.Linear]
) -> Adapter:
    """Copy ``adapter`` under another name, with its update scaled."""
    if not adapter.magnitude:
        alpha, scaling = adapter.alpha * factor, adapter.scaling * factor
        return replace(adapter, name=name, alpha=alpha, scaling=scaling)  # shares A and B

    def update_of(module: str) -> LowRankUpdate:
        weight = dense_weight(linears[module])
        return LowRankUpdate.from_adapter(adapter, module, weight).scaled(factor)

    return replaced_updates(adapter, name, update_of)


def replaced_updates(
    adapter: Adapter, name: str, update_of: Callable[[str], LowRankUpdate]
) -> Adapter:
    """Copy ``adapter`` for inference under another name, with other updates of its modules.

    The updates may have other ranks; the scaling stays.
    """
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
def scaled_model(frozen: Base, tuned: Base, factor: float) -> Base:
    """Copy a fully fine-tuned model with every parameter at W0 + f (W - W0).

    Values are computed in float32, and rounded to the base's dtype once.
    """
    copied, trained = frozen.copied(), dict(tuned.model.named_parameters())
    for name, parameter in copied.model.named_parameters():
        before = parameter.float()
        parameter.copy_(before + factor * (trained[name].float() - before))
    return copied
