"""A trained trial's weights: written into the study, and read back."""

from pathlib import Path

from rankscope.errors import IntegrityError, UserError
from rankscope.hashing import sha256_file, sha256_json, weights_sha256
from rankscope.models.adapters.folder import adapter_sha256, load_adapter
from rankscope.models.adapters.settings import READABLE_INITS
from rankscope.models.base import Base
from rankscope.models.load import load_trained_model
from rankscope.models.methods import get_lora_method, get_method
from rankscope.models.quantize import dense_weight
from rankscope.models.svd_cache import svd
from rankscope.records import ModelRecord, TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.store import TrialFailure, weights_path
from rankscope.train.trial_state import TrialState


def write_weights(
    state: TrialState, trial: TrialSpec, model: Base, base_record: ModelRecord, folder: Path
) -> str:
    """Write a PEFT adapter with its card, or a whole model, into ``folder``; sha256 of its weights.

    ``trial`` is the trained one or a slice of it. ``model`` holds the weights of full fine-tuning.
    """
    trained = state.adapter or state.tuner or model
    get_method(trial.method).save(trained, trial, base_record, folder)
    if not trial.is_full:
        from rankscope.report.model_card import adapter_card  # pandas, which takes long

        card = adapter_card(trial, base_record)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return sha256_json([sha256_file(path) for path in sorted(folder.glob("*.safetensors"))])


def model_with_weights(context: RunContext, group: Group) -> Base | None:
    """The base with the trials' stored adapters attached, or a full trial's own model.

    None if training left a full model in a state in which it cannot run: the trial is then marked
    ``failed``. Raises IntegrityError: stored weights are not what was written.
    """
    model = context.base
    for trial in group:
        if trial.given is not None:
            model = load_given(model, trial)
            continue
        folder = context.ledger.checked_path(weights_path(trial))
        try:
            model = get_method(trial.method).load(model, trial, folder)
        except UserError as error:
            if not trial.is_full:
                raise
            # The base itself has passed the same checks.
            reason = f"the trained model cannot be used: {str(error).split(';')[0]}"
            context.ledger.fail_trials([TrialFailure(trial.trial_id, "failed", reason)])
            return None
    return model


def load_given(base: Base, trial: TrialSpec) -> Base:
    """Put a given model on the base as a stored trial is put there; the base to score.

    Raises IntegrityError: it is not what it was when the study was prepared.
    """
    given = trial.given
    assert given is not None
    folder = Path(given.folder)
    sha256 = weights_sha256(folder) if trial.is_full else adapter_sha256(folder)
    if sha256 != given.sha256:
        raise IntegrityError(
            f"{folder}",
            "other weights than when the study was prepared",
            "the same",
            "run the command again",
        )
    if trial.is_full:
        return load_trained_model(base, folder)
    if trial.peft is not None:
        from rankscope.models.peft_backend.tuner import load_tuner  # PEFT takes a second to import

        changes = {} if given.other_base is None else {"sha256": given.other_base}
        load_tuner(base, folder, base.record.model_copy(update=changes))
        return base
    method = get_lora_method(trial.method)
    adapter = load_adapter(folder, trial.trial_id, inits=READABLE_INITS, has_copies=True)
    if method.init_is_part_of_base:
        linears = base.linears()
        for name in adapter.a:
            parts = svd(dense_weight(linears[name]))
            adapter.initial_factors[name] = method.initial_factors_of(adapter, name, parts)
    base.multi_lora.attach(adapter.to(base.device))
    return base
