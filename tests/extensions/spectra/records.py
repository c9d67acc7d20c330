"""Spectra of models, trained in a simulated study or given."""

from dataclasses import replace

import numpy as np
from inspections import inspection
from synthetic_study import ATTENTION, HIDDEN, LAYERS, with_trials

from rankscope.extensions.spectra.record import MatrixSpectrum, SpectraRecord, chance_levels
from rankscope.records import StudyRecords, TrialRecords, TrialSpec


def with_spectra(study: StudyRecords) -> StudyRecords:
    """The study with the spectra of every trial that ended well."""
    return with_trials(
        study, lambda t: replace(t, analyses=(*t.analyses, spectra_of(t.spec))) if t.train else t
    )


def inspected(name: str) -> StudyRecords:
    """Two models on three matrices, one outside of the layers."""
    found = inspection(name)
    trials = []
    for place, trial in enumerate(found.trials):
        matrices = (
            matrix(0, "q_proj", 0.1, 1),
            matrix(1, "q_proj", 0.2 + place, 2),
            matrix(None, "lm_head", 0.05, 0),
        )
        trials.append(with_matrices(trial, *matrices))
    return replace(found, trials=tuple(trials))


def with_matrices(trial: TrialRecords, *matrices: MatrixSpectrum) -> TrialRecords:
    label = trial.spec.trial_id
    record = SpectraRecord(
        trial_id=label, intruder_k=10, intruder_epsilon=0.5, matrices=matrices, seconds=1
    )
    return replace(trial, analyses=(record,))


def matrix(layer: int | None, module: str, relative: float, intruders: int) -> MatrixSpectrum:
    place = "" if layer is None else f"layers.{layer}."
    return MatrixSpectrum(
        name=f"{place}{module}",
        layer=layer,
        module=module,
        shape=(64, 32),
        frobenius=relative,
        relative=relative,
        singular_values=(relative,),
        effective_rank=1,
        stable_rank=1,
        top_k=8,
        similarity_index=(0.9, 0.8),
        similarity_max=(0.95, 0.9),
        similarity_subspace=(0.99, 0.97),
        **chance_levels(8, (64, 32)),
        intruders=intruders,
        intruder_energy=intruders / 10,
    )


def spectra_of(spec: TrialSpec) -> SpectraRecord:
    rank = spec.rank or HIDDEN
    matrices = []
    for layer in range(LAYERS):
        for position, module in enumerate(ATTENTION):
            # Geometric spectrum: as many values as the rank allows, scaled by layer and module.
            sigma = (1 + layer + 0.2 * position) * 0.8 ** np.arange(min(rank, HIDDEN))
            share = sigma / sigma.sum()
            similarity = 1 / (1 + 0.05 * np.log2(rank + 1))
            matrices.append(
                MatrixSpectrum(
                    name=f"model.layers.{layer}.self_attn.{module}",
                    layer=layer,
                    module=module,
                    shape=(HIDDEN, HIDDEN),
                    frobenius=float(np.sqrt((sigma**2).sum())),
                    relative=float(np.sqrt((sigma**2).sum())) / 10,
                    singular_values=tuple(float(s) for s in sigma),
                    effective_rank=float(np.exp(-(share * np.log(share)).sum())),
                    stable_rank=float((sigma**2).sum() / sigma[0] ** 2),
                    top_k=HIDDEN // 4,
                    similarity_index=(similarity**3, similarity**3),
                    similarity_max=(similarity**2, similarity**2),
                    similarity_subspace=(similarity, similarity),
                    **chance_levels(HIDDEN // 4, (HIDDEN, HIDDEN)),
                    intruders=min(3, int(np.log2(rank))),
                    intruder_energy=0.1 * min(3, int(np.log2(rank))),
                )
            )
    return SpectraRecord(
        trial_id=spec.trial_id,
        intruder_k=10,
        intruder_epsilon=0.5,
        matrices=tuple(matrices),
        seconds=0.1,
    )
