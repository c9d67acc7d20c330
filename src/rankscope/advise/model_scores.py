"""Scores of the base and of given models, each beside the base on the same items."""

from collections.abc import Iterator

from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import compared_scores
from rankscope.records import BASE, Estimate, EvalRecord, ModelScore, StudyRecords, TrialRecords


def model_scores(study: StudyRecords) -> tuple[ModelScore, ...]:
    """Return scores task by task, the base first, then the given models in their order.

    The split is test, or the one that the study file names. A study with arms only has none.
    """
    is_imported = not study.config.arms and any(task.trained_on for task in study.tasks)
    if is_imported or (study.config.arms and not study.config.given):
        return ()
    return tuple(score for task in study.tasks for score in _scores_on(study, task.name))


def _scores_on(study: StudyRecords, name: str) -> Iterator[ModelScore]:
    task, split = study.task(name), study.config.evaluate.split or "test"
    given = [trial for trial in study.trials if trial.spec.given is not None]
    for trial in (None, *given):
        model = BASE if trial is None else trial.spec.trial_id
        record = study.evals.get((model, name, split))
        if record is None:
            continue
        yield ModelScore(
            model=BASE if trial is None else trial.spec.arm_label,
            record=record,
            change=None if trial is None else _change(study, trial, record),
            chance=task.chance,
            score_unit=task.score_unit,
            num_fewshot=task.num_fewshot,
            source=task.source,
            task_sha256=task.sha256,
            other_base_forced=bool(trial and trial.spec.given and trial.spec.given.other_base),
        )


def _change(study: StudyRecords, trial: TrialRecords, record: EvalRecord) -> Estimate | None:
    """Return the change against the base, paired by items; None if the score is no mean over
    items."""
    if record.standard_error is None and record.n > 1:
        return None
    pair = compared_scores(study, [trial], record.task, split=record.split)
    return None if pair is None else weighted_estimate([pair])
