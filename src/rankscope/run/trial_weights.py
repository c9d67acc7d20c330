"""A trained trial's weights: written into the study, and read back."""

from pathlib import Path

from rankscope.errors import UserError
from rankscope.models.adapters.folder import load_adapter, save_adapter
from rankscope.models.base import Base
from rankscope.models.load import load_base
from rankscope.models.peft_backend.tuner import load_tuner
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import ModelRecord
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.store import TrialFailure, weights_path
from rankscope.train.trial_state import TrialState


def write_weights(state: TrialState, model: Base, base_record: ModelRecord, folder: Path) -> str:
    """Write a PEFT adapter, or a whole model, into ``folder``; sha256 of its weights.

    ``model`` holds the weights of full fine-tuning.
    """
    if state.adapter is not None:
        save_adapter(state.adapter, state.spec, base_record, folder)
    elif state.tuner is not None:
        state.tuner.save(state.spec, base_record, folder)
    else:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    return sha256_json([sha256_file(path) for path in sorted(folder.glob("*.safetensors"))])


def model_with_weights(context: RunContext, group: Group) -> Base | None:
    """The base with the trials' stored adapters attached, or a full trial's own model.

    None if training left a full model in a state in which it cannot run: the trial is then marked
    ``failed``.

    Raises:
        IntegrityError: stored weights are not what was written.
    """
    ledger, base, first = context.ledger, context.base, group[0]
    if first.method == "full":
        folder = ledger.checked_path(weights_path(first))
        try:
            return load_base(context.study.config.model, base.device, context.study.dtype, folder)
        except UserError as error:  # the base itself has passed the same checks
            reason = f"the trained model cannot be used: {str(error).split(';')[0]}"
            ledger.fail_trials([TrialFailure(first.trial_id, "failed", reason)])
            return None
    if first.method == "peft":
        load_tuner(base, ledger.checked_path(weights_path(first)))
        return base
    for trial in group:
        folder = ledger.checked_path(weights_path(trial))
        base.multi_lora.attach(load_adapter(folder, trial.trial_id, base.record).to(base.device))
    return base
