"""Spectra of one trained trial, whatever trained it: which matrices, and against which."""

from collections.abc import Sequence

import torch

from rankscope.analyze.spectra import SpectraSettings, analyze_adapter, analyze_full
from rankscope.analyze.stored_models import computing_device
from rankscope.analyze.svd_cache import SvdCache
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.multi_lora import target_linears
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.models.quantize import dense_weight
from rankscope.records import SpectraRecord, TrialSpec


def compared_matrices(base: Base, trials: Sequence[TrialSpec]) -> list[str]:
    """Module paths of the matrices compared over the arms of a study with these ``trials``.

    Those that some adapter of the study changes, else all linear layers but the output head, so
    that full fine-tuning and LoRA are measured on the same.
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
    spectra: SvdCache,
) -> SpectraRecord:
    """Spectra of a trial's adapter, of what a method of PEFT's can merge, or of a tuned model.

    Args:
        trial: what trained.
        base: the frozen base.
        tuned: the base with the trial's weights attached, or a full trial's own model.
        trials: of the study; they say which matrices of a tuned model are compared.
        settings: of the study file's ``spectra`` section.
        spectra: of base weights, kept for other trials.
    """
    device = computing_device(base.device)
    if isinstance(tuner := tuned.multi_lora.injected_tuner, PeftTuner):
        return analyze_full(
            lambda name: tuner.base_weight(name).to(device),
            lambda name: tuner.merged_weight(name).to(device),
            tuner.mergeable(),
            settings,
            trial.trial_id,
            spectra,
        )
    linears = base.linears()

    def weights(name: str) -> torch.Tensor:
        return dense_weight(linears[name]).to(device)

    if not trial.is_full:
        adapter = tuned.multi_lora.adapters[trial.trial_id]
        return analyze_adapter(weights, adapter, settings, trial.trial_id, spectra)
    # From the stored float32: in bfloat16 a weight is rounded by up to a part in 512, which can be
    # as much as a small learning rate moved it.
    stored = CheckpointReader.open(tuned.folder)
    names = compared_matrices(base, trials)
    return analyze_full(
        weights,
        lambda name: stored.weight(name, device),
        names,
        settings,
        trial.trial_id,
        spectra,
    )
