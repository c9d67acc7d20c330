"""Models that a study does not train: read from their folders, or scored in another study."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rankscope.analyses import enabled_analyses
from rankscope.config.study import GivenConfig, StudyConfig
from rankscope.errors import IntegrityError, UserError
from rankscope.filesystem import user_path
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import adapter_sha256, load_adapter
from rankscope.models.adapters.settings import READABLE_INITS
from rankscope.models.base import Base
from rankscope.models.load import load_trained_model
from rankscope.models.methods import get_lora_method
from rankscope.models.quantize import dense_weight
from rankscope.models.study_base import (
    StudyBase,
    check_distinct,
    num_trained_parameters,
    trial_of_given,
)
from rankscope.models.svd_cache import svd
from rankscope.records import (
    GivenModel,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    TrialSpec,
    finished_trials,
)
from rankscope.run.context import RunContext
from rankscope.run.groups import group_id
from rankscope.run.prepared import wanted_splits
from rankscope.store import Artifact, Ledger, items_path, task_changes


def given_models(
    config: StudyConfig, base: StudyBase, tasks: Sequence[TaskRecord]
) -> tuple[TrialSpec, ...]:
    """The trials of all given models: those of ``base``, and those whose scores another study has.

    ``tasks`` are the study's. Raises UserError: stored scores are not those that the study would
    compute, or an analysis needs their weights.
    """
    scored = [g for g in config.given or () if g.scores is not None]
    trials = (*base.given, *(_scored_trial(given, config, base, tasks) for given in scored))
    check_distinct(trials)
    names = [trial.arm_label for trial in trials]
    for trial in trials:
        if names.count(trial.arm_label) > 1:
            found = f"the name {trial.arm_label!r} twice"
            raise UserError("given", found, "each model's own", "set 'name' of one")
    return trials


def _scored_trial(
    given: GivenConfig, config: StudyConfig, base: StudyBase, tasks: Sequence[TaskRecord]
) -> TrialSpec:
    folder = user_path(given.place)
    study, place = Ledger.read(folder, with_analyses=False), f"given: scores in {folder}"
    trial = _the_one(study, given.trial, place)
    again = "score its models again: rankscope eval"
    for name, now in (
        ("sha256", base.sha256),
        ("dtype", config.dtype),
        ("quantize", config.quantize),
        ("prompt_format", config.model.prompt_format),
    ):
        before = getattr(study.model, name)
        if before != now and now != NOT_READ:
            found = f"those of the base model {study.model.label} with {name} {before[:12]!r}"
            raise UserError(place, found, f"{now[:12]!r}, as of this study's base", again)
    known = {task.name: task for task in study.tasks}
    own = {task.name: task for task in tasks}
    for name, split in wanted_splits(config.evaluate.split, tasks, ""):
        if (trial.spec.trial_id, name, split) not in study.evals:
            found = f"no {split} scores of task {name!r}"
            raise UserError(place, found, "scores on all that this study scores", again)
        if changes := task_changes(known[name], own[name], split):
            found = f"scores of task {name!r} on other items, or scored otherwise"
            raise UserError(place, f"{found} ({'; '.join(changes)})", "this study's", again)
    for analysis in enabled_analyses(config):
        raise UserError(
            place,
            "stored scores, without the weights that an analysis needs",
            f"a study without {analysis.section}.{analysis.name}",
            "turn it off, or give the model's own folder as 'path'",
        )
    assert trial.train is not None
    model = GivenModel(
        name=given.name or trial.spec.arm_label,
        folder=str(folder),
        sha256=trial.train.weights_sha256,
        scores_of=trial.spec.trial_id,
    )
    kept = trial.spec.model_dump(include={"method", "peft", "rank", "alpha", "targets"})
    return trial_of_given(model, base.sha256, kept)


def _the_one(study: StudyRecords, wanted: str | None, place: str) -> TrialRecords:
    """The finished model that ``wanted`` names, or the only one."""
    finished = finished_trials(study.trials)
    names = [f"{t.spec.label} ({t.spec.trial_id})" for t in finished]
    chosen = [
        t for t in finished if wanted in (None, t.spec.trial_id, t.spec.label, t.spec.arm_label)
    ]
    if len(chosen) != 1:
        found = f"{len(chosen)} finished models" + (f" called {wanted!r}" if wanted else "")
        do = f"name one with 'trial': {', '.join(names[:MODELS_NAMED]) or 'there is none'}"
        raise UserError(place, found, "one", do)
    return chosen[0]


MODELS_NAMED = 12  # Models that a message names
NOT_READ = "not read"  # The hash of a base whose weights a plan does not need


# --- in a run -------------------------------------------------------------------------------------


def store_given(context: RunContext) -> None:
    """Enter the given models that the ledger does not have yet as trained, with the scores that
    another study has of them."""
    study, ledger, statuses = context.study, context.ledger, context.ledger.statuses()
    for trial in study.trials:
        if trial.given is None:
            continue
        is_new = statuses[trial.trial_id] == "planned"
        if trial.given.scores_of is not None:
            missing = ledger.missing_evals(study.wanted_evals(trial.trial_id, trial.task))
            if is_new or missing:
                _copy_scores(context, trial, trial.given, [key[1:] for key in missing])
        elif is_new:
            num_parameters = num_trained_parameters(trial, study.base.shapes.num_parameters)
            ledger.commit([given_record(trial, num_parameters)])


def _copy_scores(
    context: RunContext, trial: TrialSpec, given: GivenModel, splits: Sequence[tuple[str, str]]
) -> None:
    """Store the scores of some splits, after comparing their hashes, in one transaction."""
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
            place = items_path(trial.trial_id, record.task, record.split)
            artifacts += ledger.publish(file, place)
        own = [record.model_copy(update={"trial_id": trial.trial_id}) for record in records]
        entry = given_record(trial, train.trainable_parameters if train else 0)
        settings = context.study.settings_of("eval", [trial.trial_id])
        ledger.commit([entry, *own], artifacts, settings)
    ledger.finish_trials([trial.trial_id])


def given_record(trial: TrialSpec, num_parameters: int) -> TrainRecord:
    """The training record of a given model of so many trained numbers."""
    assert trial.given is not None
    record = {
        "trial_id": trial.trial_id,
        "group_id": group_id((trial,)),
        "group_size": 1,
        "trainable_parameters": num_parameters,
        "losses": (),
        "weights_sha256": trial.given.sha256,
    }
    return TrainRecord.model_validate(record | dict.fromkeys(NOT_TRAINED, 0))


NOT_TRAINED = (
    *("steps", "num_tokens", "num_label_tokens", "rows", "rows_dropped", "rows_truncated"),
    *("seconds", "peak_memory_bytes"),
)
"""What a given model did not take of this study."""


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
