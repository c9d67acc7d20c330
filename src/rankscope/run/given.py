"""Models that a study does not train, while it runs: stored as trained, loaded for scoring."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import IntegrityError
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import adapter_sha256
from rankscope.models.base import Base
from rankscope.models.given import num_trained_parameters
from rankscope.models.methods.method import Method
from rankscope.records import GivenModel, TrainRecord, TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import group_id
from rankscope.store import Artifact, Ledger, items_path
from rankscope.store.database import StoredRecord


def store_given(context: RunContext) -> None:
    """Enter prompts and given models that the ledger lacks as trained.

    Scores that another study has of them are copied.
    """
    study, ledger, statuses = context.study, context.ledger, context.ledger.statuses()
    for trial in study.trials:
        if trial.trains:
            continue
        is_new, given = statuses[trial.trial_id] == "planned", trial.given
        if given is not None and given.scores_of is not None:
            missing = ledger.missing_evals(study.wanted_evals(trial.trial_id, trial.task))
            if is_new or missing:
                _copy_scores(context, trial, given, [key[1:] for key in missing])
        elif is_new:
            num_of_base = study.base.shapes.num_parameters
            number = 0 if given is None else num_trained_parameters(trial, num_of_base)
            ledger.commit([given_record(trial, number)])


def store_finished(
    ledger: Ledger,
    trained: Sequence[tuple[TrialSpec, TrainRecord]],
    records: Sequence[StoredRecord],
    artifacts: Sequence[Artifact] = (),
) -> None:
    """Enter models of other programs, trials of the study, with all that is known of them."""
    ledger.commit([train for _, train in trained])
    ledger.commit(records, artifacts)
    ledger.finish_trials([trial.trial_id for trial, _ in trained])


def _copy_scores(
    context: RunContext, trial: TrialSpec, given: GivenModel, splits: Sequence[tuple[str, str]]
) -> None:
    """Store the scores of some splits in one transaction, after comparing their hashes."""
    ledger, scored = context.ledger, given.scores_of or ""
    with Ledger.open(Path(given.folder), write=False) as source, ledger.stage() as staged:
        study = source.load(with_analyses=False)
        train = next(t.train for t in study.trials if t.spec.trial_id == scored)
        records = [study.evals[scored, *key] for key in splits]  # type: ignore[index]
        artifacts: list[Artifact] = []
        for record in records:
            file = staged / f"{len(artifacts)}.parquet"
            path = source.checked_path(items_path(scored, record.task, record.split))
            shutil.copyfile(path, file)
            own_path = items_path(trial.trial_id, record.task, record.split)
            artifacts += ledger.publish(file, own_path)
        own = [record.model_copy(update={"trial_id": trial.trial_id}) for record in records]
        entry = given_record(trial, train.trainable_parameters if train else 0)
        settings = context.study.settings_of("eval", [trial.trial_id])
        ledger.commit([entry, *own], artifacts, settings)
    ledger.finish_trials([trial.trial_id])


def given_record(trial: TrialSpec, num_parameters: int) -> TrainRecord:
    """Make the training record of a prompt, or of a given model with so many trained numbers.

    All other figures of its training are 0 in this study.
    """
    figures = [name for name, field in TrainRecord.model_fields.items() if field.is_required()]
    record = {
        **dict.fromkeys(figures, 0),
        "trial_id": trial.trial_id,
        "group_id": group_id((trial,)),
        "group_size": 1,
        "trainable_parameters": num_parameters,
        "losses": (),
        "weights_sha256": trial.given.sha256 if trial.given else "",
    }
    return TrainRecord.model_validate(record)


def load_given(base: Base, trial: TrialSpec) -> Base:
    """Put a given model on the base like a stored trial, and return the base to score.

    Raises IntegrityError: it changed after the study was prepared.
    """
    given = trial.given
    if given is None:  # a prompt
        return base
    folder = Path(given.folder)
    sha256 = weights_sha256(folder) if trial.is_full else adapter_sha256(folder)
    if sha256 != given.sha256:
        found = "other weights than when the study was prepared"
        raise IntegrityError(f"{folder}", found, "the same", "run the command again")
    return Method.of(trial.method).load(base, trial, folder)
