"""A tuned model milder than it was trained: W0 + f (W - W0), with one factor or one per layer."""

import copy
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import MultiLora, unwrap
from rankscope.models.quantize import dense_weight
from rankscope.records import Variant

FIRST = re.compile(r"embed(?!_out)|(?:^|\.)w[tp]e(?:\.|$)")
"""Embeddings by name; GPT-2 calls them wte and wpe, GPT-NeoX its output layer embed_out."""
FactorOf = Callable[[str], float]
"""Name of a module or parameter -> its factor f."""


def layer_of(name: str) -> int | None:
    """Number of the layer that a module or parameter path names, from 0; None outside of layers."""
    found = re.search(r"(?:^|\.)([0-9]+)\.", name)
    return int(found[1]) if found else None


def factors(variant: Variant, num_layers: int) -> FactorOf:
    """The factor of every module under a variant.

    ``layers`` (LiNeS, Wang et al., 2410.17146): f = start + (1 - start) l / (L - 1) in layer l,
    from 0, of L. Embeddings count as the first layer, final norm and output layer as the last.
    """
    if variant.kind == "scale":
        return lambda name: variant.strength

    def of_depth(name: str) -> float:
        last, layer = num_layers - 1, layer_of(name)
        if layer is None:
            layer = 0 if FIRST.search(name) else last
        return variant.strength + (1 - variant.strength) * layer / max(1, last)

    return of_depth


def scaled_adapter(
    adapter: Adapter, adapter_name: str, factor_of: FactorOf, linears: Mapping[str, nn.Linear]
) -> Adapter:
    """An adapter, ready to score, whose module ``name`` computes W0 + f s B A with its own f.

    A and B are shared with ``adapter`` where f is the same for all, and there is no magnitude.

    Raises:
        ValueError: an adapter that starts from a part of W0 and is not stored as plain LoRA yet.
    """
    if adapter.initial_factors:
        raise ValueError(f"{adapter.name}: only stored adapters can be scaled")
    each = {name: factor_of(name) for name in adapter.a}
    whole = next(iter(each.values()))
    shared = not adapter.magnitude and all(f == whole for f in each.values())
    with torch.no_grad():
        b, magnitude = adapter.b, {}
        if not shared:
            b = {n: nn.Parameter(each[n] * part, requires_grad=False) for n, part in b.items()}
        for name, m in adapter.magnitude.items():
            weight, s = dense_weight(linears[name]).float(), adapter.scaling
            gain = m / (weight + s * adapter.b[name] @ adapter.a[name]).norm(dim=1)
            milder, part = scaled_rows(gain, adapter.b[name], each[name])
            b[name] = nn.Parameter(part, requires_grad=False)
            length = (weight + s * b[name] @ adapter.a[name]).norm(dim=1)
            magnitude[name] = nn.Parameter(milder * length, requires_grad=False)
    return Adapter(
        name=adapter_name,
        rank=adapter.rank,
        alpha=adapter.alpha * (whole if shared else 1.0),
        scaling=adapter.scaling * (whole if shared else 1.0),
        targets=adapter.targets,
        method=adapter.method,
        a=adapter.a,
        b=b,
        magnitude=magnitude,
    )


def scaled_rows(gain: Tensor, b: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """DoRA: W = g (W0 + B A), g by row, (m,), as W0 + f (W - W0) = g' (W0 + B' A): g' and B'.

    g' = 1 + f (g - 1) and B' = f (g / g') B; of no use where a g' is not above 0.
    """
    milder = 1 + factor * (gain - 1)
    return milder, (gain / milder)[:, None] * (factor * b)


@torch.no_grad()
def scaled_model(frozen: Base, tuned: Base, factor_of: FactorOf) -> Base:
    """A copy of a fully fine-tuned model with every parameter at W0 + f (W - W0).

    The sum is made in float32 and rounded to the base's dtype once.
    """
    model = copy.deepcopy(frozen.model)
    unwrap(model)
    trained = dict(tuned.model.named_parameters())
    for name, parameter in model.named_parameters():
        start = parameter.float()
        parameter.copy_(start + factor_of(name) * (trained[name].float() - start))
    return Base(model, frozen.tokenizer, frozen.record, frozen.folder, MultiLora(model))
