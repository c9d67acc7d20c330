"""Trained trials made milder at inference, to be scored under model ids of their own."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from rankscope.analyze.decomposition import BaseSpectra
from rankscope.analyze.mitigate import Change, intruder_change, norm_matched
from rankscope.analyze.trial import compared_matrices
from rankscope.analyze.update import Update
from rankscope.inputs import StudyInputs
from rankscope.models.base import Base
from rankscope.models.lora import Adapter, tuned_delta
from rankscope.models.quantize import dense_weight
from rankscope.models.scaled import factors, scaled_adapter, scaled_model
from rankscope.records import TrialSpec, Variant
from rankscope.trials import ALONE


def attach_variants(
    base: Base,
    inputs: StudyInputs,
    trials: Sequence[TrialSpec],
    spectra: BaseSpectra,
    wanted: Collection[str],
) -> list[str]:
    """Attach those milder forms of attached adapters whose model ids, their slots, are wanted."""
    if trials[0].method in ALONE:
        return []
    found: list[str] = []
    for trial in trials:
        adapter = base.pack.adapters[trial.trial_id]
        for variant in inputs.variants(trial):
            slot = variant.of(trial.trial_id)
            if slot not in wanted:
                continue
            if variant.kind in ("scale", "layers"):
                scale = factors(variant, base.record.num_layers)
                milder = scaled_adapter(adapter, slot, scale, base.linears())
            else:
                milder = without_intruders(base, adapter, variant, slot, inputs, spectra)
            base.pack.attach(milder)
            found.append(slot)
    return found


def without_intruders(
    base: Base,
    adapter: Adapter,
    variant: Variant,
    slot: str,
    inputs: StudyInputs,
    spectra: BaseSpectra,
) -> Adapter:
    """The adapter with its intruder dimensions scaled, or its norm-matched control; of rank r +
    number of intruders."""
    linears = base.linears()
    updates: dict[str, Update] = {}
    for name, a in adapter.a.items():
        weight = dense_weight(linears[name]).float()
        low, high = a.detach().double(), adapter.scaling * adapter.b[name].detach().double()
        update = Update(low, high)
        if name in adapter.magnitude:
            update = Update.of_magnitude(low, high, adapter.magnitude[name].double(), weight)
        delta = tuned_delta(adapter, name, weight)
        change = change_of(name, weight, delta, variant, inputs, spectra)
        if variant.kind == "intruders":
            updates[name] = update.plus(change)
        else:
            updates[name] = update.scaled(norm_matched(delta, change))
    magnitudes = {n: u.magnitude for n, u in updates.items()}
    return Adapter(
        slot=slot,
        rank=adapter.rank,
        alpha=float(adapter.rank),
        scaling=1.0,
        targets=adapter.targets,
        a={name: frozen(update.A) for name, update in updates.items()},
        b={name: frozen(update.B) for name, update in updates.items()},
        magnitude={name: frozen(m) for name, m in magnitudes.items() if m is not None},
    )


def frozen(values: Tensor) -> nn.Parameter:
    """Float32 weights that do not train."""
    return nn.Parameter(values.detach().float(), requires_grad=False)


def change_of(
    name: str,
    weight: Tensor,
    delta: Tensor,
    variant: Variant,
    inputs: StudyInputs,
    spectra: BaseSpectra,
) -> Change:
    """What scaling the intruders of one matrix adds to it, by the study's definition of them."""
    settings = inputs.config.analyze.spectra
    return intruder_change(weight, delta, spectra.of(name, weight), variant.strength, settings)


def scaled_models(
    base: Base,
    tuned: Base,
    inputs: StudyInputs,
    trials: Sequence[TrialSpec],
    spectra: BaseSpectra,
    wanted: Collection[str],
) -> Iterator[tuple[str, Base]]:
    """The wanted milder forms of a fully fine-tuned model, one after another, by model id.

    Intruders are those of the matrices whose spectra the study compares; the others stay as tuned.
    """
    for trial in trials:
        for variant in inputs.variants(trial) if trial.is_full else []:
            if variant.of(trial.trial_id) not in wanted:
                continue
            if variant.kind in ("scale", "layers"):
                scale = factors(variant, base.record.num_layers)
                yield variant.of(trial.trial_id), scaled_model(base, tuned, scale)
                continue
            model = scaled_model(base, tuned, lambda name: 1.0)
            linears, originals = model.linears(), base.linears()
            for name in compared_matrices(base, inputs.trials):
                weight = dense_weight(originals[name]).float()
                delta = linears[name].weight.float() - weight
                change = change_of(name, weight, delta, variant, inputs, spectra)
                if variant.kind == "intruders":
                    milder = delta + (change.left @ change.right).float()
                else:
                    milder = norm_matched(delta, change) * delta
                with torch.no_grad():
                    linears[name].weight.copy_(weight + milder)
            yield variant.of(trial.trial_id), model
            del model, linears  # before the next copy is made
