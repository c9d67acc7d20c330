"""Spectra of one trained trial of a study, whatever method trained it."""

import time
from collections.abc import Iterable, Sequence

from torch import Tensor

from rankscope.analyze.spectra import (
    adapter_spectrum,
    full_spectrum,
    spectra_record,
)
from rankscope.analyze.svd_cache import SvdCache, decomposition_device
from rankscope.config.study import SpectraConfig
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.parameters import Architecture, target_shapes
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.models.quantize import dense_weight
from rankscope.records import MatrixSpectrum, SpectraRecord, TrialSpec


def compared_matrices(
    shapes: Architecture, trials: Sequence[TrialSpec]
) -> dict[str, tuple[int, int]]:
    """The matrices to compare between the arms of a study: module path -> (out, in).

    Those that some adapter changes, so that full fine-tuning and LoRA are measured on the same
    ones; without adapters, all linear layers but the output head.
    """
    targets = {target for trial in trials for target in trial.targets}
    targets = targets or set(shapes.linear_shapes) - {shapes.output_layer or ""}
    return target_shapes(shapes, sorted(targets))


def analyze_trial(
    trial: TrialSpec,
    base: Base,
    tuned: Base,
    matrix_names: Iterable[str],
    settings: SpectraConfig,
    svds: SvdCache,
) -> SpectraRecord:
    """Spectra of a trial's adapter, PEFT tuner or, in ``matrix_names``, fully fine-tuned model.

    ``tuned`` is the base with the trial's weights attached, or a full trial's own model.
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
        matrices = [
            full(n, dense_weight(linears[n]), stored.weight(n, device)) for n in matrix_names
        ]
    else:
        adapter = tuned.multi_lora.adapters[trial.trial_id]
        matrices = [
            adapter_spectrum(n, dense_weight(linears[n]).to(device), adapter, settings, svds)
            for n in adapter.a
        ]
    return spectra_record(trial.trial_id, settings, matrices, time.perf_counter() - started)
