"""A trained trial's weights: written into the study, and read back."""

from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import UserError
from rankscope.models.base import Base
from rankscope.models.methods import get_method
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import ModelRecord, TrialSpec
from rankscope.report.model_card import adapter_card
from rankscope.run.prepare import PreparedStudy
from rankscope.store import Ledger, TrialFailure, weights_path
from rankscope.train.trial_state import TrialState


def write_weights(trial_state: TrialState, base: Base, record: ModelRecord, folder: Path) -> str:
    """Write a PEFT adapter with its card, or a whole model, into ``folder``; sha256 of its weights.

    base: holds the weights of full fine-tuning. record: of the frozen base.
    """
    trained = trial_state.adapter or trial_state.tuner or base
    get_method(trial_state.spec.method).save(trained, trial_state.spec, record, folder)
    if not trial_state.spec.is_full:
        card = adapter_card(trial_state.spec, record)
        (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(folder.glob("*.safetensors"))
    return sha256_json([sha256_file(path) for path in files])


def with_weights(
    ledger: Ledger, inputs: PreparedStudy, base: Base, trials: Sequence[TrialSpec]
) -> Base | None:
    """The base with the trials' stored adapters attached, or a full trial's own model; None where
    training left that in a state in which it cannot run, so that the trial is ``failed``.

    Raises:
        IntegrityError: stored weights are not what was written.
    """
    for trial in trials:
        folder = ledger.checked_path(weights_path(trial))
        try:
            base = get_method(trial.method).load(base, trial, folder)
        except UserError as error:
            if not trial.is_full:
                raise
            # The base itself has passed the same checks.
            reason = f"the trained model cannot be used: {str(error).split(';')[0]}"
            ledger.fail_trials([TrialFailure(trial.trial_id, "failed", reason)])
            return None
    return base
