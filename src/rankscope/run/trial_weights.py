"""A trained trial's weights: written into the study, and read back."""

from pathlib import Path

from rankscope.errors import UserError
from rankscope.hashing import sha256_file, sha256_json
from rankscope.models.base import Base
from rankscope.models.methods.method import Method
from rankscope.records import ModelRecord
from rankscope.run.context import RunContext
from rankscope.run.given import load_given
from rankscope.run.groups import Group
from rankscope.store import TrialFailure, weights_path
from rankscope.train.trial_state import TrialState


def write_weights(state: TrialState, model: Base, base_record: ModelRecord, folder: Path) -> str:
    """Write a PEFT adapter with its card, or a whole model, into ``folder``.

    ``model`` holds the weights of full fine-tuning. Returns the sha256 of the weights.
    """
    trial, trained = state.spec, state.adapter or state.tuner or model
    Method.of(trial.method).save(trained, base_record, folder)
    if not trial.is_full:
        from rankscope.report.model_card import adapter_card  # pandas, which takes long

        card = adapter_card(trial, base_record)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return sha256_json([sha256_file(path) for path in sorted(folder.glob("*.safetensors"))])


def model_with_weights(context: RunContext, group: Group) -> Base | None:
    """Return the base with the trials' stored adapters attached, or a full trial's own model.

    The result is None if training left a full model that cannot run; the trial is then marked
    ``failed``. Raises IntegrityError: stored weights were altered.
    """
    model = context.base
    for trial in group:
        if not trial.trains:
            model = load_given(model, trial)
            continue
        folder = context.ledger.checked_path(weights_path(trial))
        try:
            model = Method.of(trial.method).load(model, trial, folder)
        except UserError as error:
            if not trial.is_full:
                raise
            # The base itself has passed the same checks.
            met = UserError(error.where, error.found, error.expected)  # nobody can do anything
            reason = f"the trained model cannot be used: {met}"
            context.ledger.fail_trials([TrialFailure(trial.trial_id, "failed", reason)])
            return None
    return model
