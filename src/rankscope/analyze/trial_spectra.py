"""Spectra of one trained trial of a study, whatever method trained it."""

from collections.abc import Sequence

from torch import Tensor

from rankscope.analyze.spectra import SpectraSettings, analyze_adapter, analyze_full
from rankscope.analyze.svd_cache import SvdCache, decomposition_device
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.multi_lora import target_linears
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.models.quantize import dense_weight
from rankscope.records import SpectraRecord, TrialSpec


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
        trial: what was trained.
        base: the frozen base.
        tuned: the base with the trial's weights attached, or a full trial's own model.
        trials: of the study; they decide which matrices of a full model are compared.
        settings: the study's ``analyze.spectra`` section.
        svds: of base weights, shared between trials.
    """
    device = decomposition_device(base.device)
    if isinstance(tuner := tuned.multi_lora.injected_tuner, PeftTuner):
        return analyze_full(
            lambda name: tuner.base_weight(name).to(device),
            lambda name: tuner.merged_weight(name).to(device),
            tuner.mergeable(),
            settings,
            trial.trial_id,
            svds,
        )
    linears = base.linears()

    def base_weight(name: str) -> Tensor:
        return dense_weight(linears[name]).to(device)

    if not trial.is_full:
        adapter = tuned.multi_lora.adapters[trial.trial_id]
        return analyze_adapter(base_weight, adapter, settings, trial.trial_id, svds)
    # Read the stored float32: bfloat16 rounds a weight by up to 1 part in 512, which can be as much
    # as a small learning rate moved it.
    stored = CheckpointReader.open(tuned.folder)
    names = compared_matrices(base, trials)
    return analyze_full(
        base_weight,
        lambda name: stored.weight(name, device),
        names,
        settings,
        trial.trial_id,
        svds,
    )
