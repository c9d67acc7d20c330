"""Trained trials made milder at inference, to be scored under model ids of their own."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from rankscope.analyze.intruder_scaling import Change, intruder_scaling, norm_matched_factor
from rankscope.analyze.low_rank_update import Update
from rankscope.analyze.stored_models import computing_device
from rankscope.analyze.svd_cache import SvdCache, double
from rankscope.analyze.trial_spectra import compared_matrices
from rankscope.models.adapters.scaling import factors, scaled_adapter, scaled_model
from rankscope.models.base import Base
from rankscope.models.lora import Adapter, tuned_delta
from rankscope.models.quantize import dense_weight
from rankscope.records import TrialSpec, Variant
from rankscope.run.prepared import PreparedStudy
from rankscope.train.step_schedule import ALONE


def adapter_variant(adapter, name, variant, base, settings, svds):
    if variant.kind in ("scale", "layers"):
        scale = factors(variant, base.record.num_layers)
        return scaled_adapter(adapter, name, scale, base.linears())
    return without_intruders(base, adapter, variant, name, settings, svds)


def without_intruders(
    base: Base,
    adapter: Adapter,
    variant: Variant,
    adapter_name: str,
    inputs,
    spectra: SvdCache,
) -> Adapter:
    """The adapter with its intruder dimensions scaled, or its norm-matched control; of rank r +
    number of intruders."""
    linears, device = base.linears(), computing_device(base.device)
    a: dict[str, nn.Parameter] = {}
    b: dict[str, nn.Parameter] = {}
    magnitude: dict[str, nn.Parameter] = {}
    for name in adapter.a:
        weight = dense_weight(linears[name]).to(device)
        low, high = (double(part[name].to(device)) for part in (adapter.a, adapter.b))
        update = Update(low, adapter.scaling * high)
        if name in adapter.magnitude:
            m = adapter.magnitude[name].to(device)
            update = Update.of_magnitude(update.A, update.B, m, weight)
        delta = tuned_delta(adapter, name, weight.float())
        change = change_of(name, weight, delta, variant, inputs, spectra)
        if variant.kind == "intruders":
            update = update.plus(change)
        else:
            update = update.scaled(norm_matched_factor(delta, change))
        # An update holds the whole weight in float64: only what is stored of it stays.
        a[name], b[name] = frozen(update.A, base.device), frozen(update.B, base.device)
        if (gains := update.magnitude) is not None:
            magnitude[name] = frozen(gains, base.device)
    return Adapter(
        name=adapter_name,
        rank=adapter.rank,
        alpha=float(adapter.rank),
        scaling=1.0,
        targets=adapter.targets,
        a=a,
        b=b,
        magnitude=magnitude,
    )


def frozen(values: Tensor, device: torch.device) -> nn.Parameter:
    """Float32 weights on ``device`` that do not train."""
    return nn.Parameter(values.detach().float().to(device), requires_grad=False)


def change_of(
    name: str,
    weight: Tensor,
    delta: Tensor,
    variant: Variant,
    inputs,
    spectra: SvdCache,
) -> Change:
    """What scaling the intruders of one matrix adds to it, by the study's definition of them.

    ``weight`` is in the dtype that the spectra are of, so that its decomposition is theirs.
    """
    settings = inputs
    return intruder_scaling(weight, delta, spectra.of(name, weight), variant.strength, settings)


def full_model_variant(base, tuned, variant, matrices, inputs, spectra):
    device = computing_device(base.device)
    if variant.kind in ("scale", "layers"):
        return scaled_model(base, tuned, factors(variant, base.record.num_layers))
    model = scaled_model(base, tuned, lambda name: 1.0)
    linears, originals = model.linears(), base.linears()
    for name in matrices:
        weight = dense_weight(originals[name]).to(device)
        tuned_weight = linears[name].weight.detach().to(device)
        delta = tuned_weight.float() - weight.float()
        change = change_of(name, weight, delta, variant, inputs, spectra)
        if variant.kind == "intruders":
            milder = delta + (change.left @ change.right).float()
        else:
            milder = norm_matched_factor(delta, change) * delta
        with torch.no_grad():
            linears[name].weight.copy_(weight.float() + milder)
    return model
