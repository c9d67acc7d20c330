"""Spectra of one trained trial of a study, whatever method trained it."""

import time
from collections.abc import Sequence

from torch import Tensor

from rankscope.analyze.spectra import (
    SpectraSettings,
    adapter_spectrum,
    full_spectrum,
    spectra_record,
)
from rankscope.analyze.svd_cache import SvdCache, decomposition_device
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.multi_lora import target_linears
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.models.quantize import dense_weight
from rankscope.records import MatrixSpectrum, SpectraRecord, TrialSpec


def compared_matrices(base: Base, trials: Sequence[TrialSpec]) -> list[str]:
    """Module paths of the matrices to compare between the arms of a study.

    Those that some adapter of the study changes, so that full fine-tuning and LoRA are measured on
    the same matrices; without adapters, all linear layers but the output head.
    """
    targets = sorted({name for trial in trials for name in trial.targets})
    if targets:
        return list(target_linears(base.model, targets))
    head = base.model.get_output_embeddings()
    return [name for name, layer in base.linears().items() if layer is not head]


def analyze_trial(
    trial: TrialSpec,
    base: Base,
    tuned: Base,
    trials: Sequence[TrialSpec],
    settings: SpectraSettings,
    svds: SvdCache,
) -> SpectraRecord:
    """Spectra of a trial's adapter, PEFT tuner or fully fine-tuned model.

    Args:
        tuned: the base with the trial's weights attached, or a full trial's own model.
        trials: of the study; they decide which matrices of a full model are compared.
        svds: of base weights, shared between trials.
    """
    started = time.perf_counter()
    device, linears = decomposition_device(base.device), base.linears()

    def full(name: str, weight: Tensor, tuned_weight: Tensor) -> MatrixSpectrum:
        return full_spectrum(name, weight.to(device), tuned_weight.to(device), settings, svds)

    if isinstance(tuner := tuned.multi_lora.injected_tuner, PeftTuner):
        names = tuner.mergeable()
        matrices = [full(n, tuner.base_weight(n), tuner.merged_weight(n)) for n in names]
    elif trial.is_full:
        # Read the stored float32: bfloat16 rounds a weight by up to 1 part in 512, as much as a
        # small learning rate may have moved it.
        stored = CheckpointReader.open(tuned.folder)
        names = compared_matrices(base, trials)
        matrices = [full(n, dense_weight(linears[n]), stored.weight(n, device)) for n in names]
    else:
        adapter = tuned.multi_lora.adapters[trial.trial_id]
        matrices = [
            adapter_spectrum(n, dense_weight(linears[n]).to(device), adapter, settings, svds)
            for n in adapter.a
        ]
    return spectra_record(trial.trial_id, settings, matrices, time.perf_counter() - started)
