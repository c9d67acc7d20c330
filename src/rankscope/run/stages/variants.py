"""Scaled variants of trained trials, to be scored under model ids of their own."""

from collections.abc import Collection, Iterator, Sequence

from rankscope.analyze.svd_cache import SvdCache
from rankscope.analyze.trial_spectra import compared_matrices
from rankscope.analyze.variants import adapter_variant, full_model_variant
from rankscope.models.base import Base
from rankscope.records import TrialSpec
from rankscope.run.prepare import PreparedStudy


def attach_variants(
    base: Base,
    inputs: PreparedStudy,
    trials: Sequence[TrialSpec],
    spectra: SvdCache,
    wanted: Collection[str],
) -> list[str]:
    """Attach the wanted variants of the attached adapters; their model ids, which name them."""
    if trials[0].trains_alone:
        return []
    names: list[str] = []
    settings = inputs.config.analyze.spectra
    for trial in trials:
        adapter = base.multi_lora.adapters[trial.trial_id]
        for variant in inputs.variants(trial):
            name = variant.of(trial.trial_id)
            if name in wanted:
                scaled = adapter_variant(adapter, name, variant, base, settings, spectra)
                base.multi_lora.attach(scaled)
                names.append(name)
    return names


def scaled_models(
    base: Base,
    tuned: Base,
    inputs: PreparedStudy,
    trials: Sequence[TrialSpec],
    spectra: SvdCache,
    wanted: Collection[str],
) -> Iterator[tuple[str, Base]]:
    """The wanted variants of a fully fine-tuned model, by model id, one in memory at a time."""
    settings = inputs.config.analyze.spectra
    for trial in trials:
        for variant in inputs.variants(trial) if trial.is_full else []:
            name = variant.of(trial.trial_id)
            if name in wanted:
                matrices = compared_matrices(base, inputs.trials)
                yield (
                    name,
                    full_model_variant(base, tuned, variant, matrices, settings, spectra),
                )
