"""Compare scores: given models with the base, and the arms of two studies."""

from collections.abc import Iterator, Sequence

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.statistics.estimates import unpaired_difference, weighted_estimate
from rankscope.advise.statistics.matching import (
    align_scores,
    compared_scores,
    mean_estimate,
    stored_scores,
)
from rankscope.records import (
    BASE,
    ComparedCell,
    Estimate,
    EvalRecord,
    ItemScores,
    ModelScore,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    finished_trials,
)

_Trials = Sequence[TrialRecords]


def model_scores(study: StudyRecords) -> tuple[ModelScore, ...]:
    """List the scores of the base and the given models, task by task, the base first.

    They are of the test split, or of the split that the study file names. A study without given
    models has none.
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
    """Return the change against the base, paired by items; None if the score is no mean of
    items."""
    if record.standard_error is None and record.n > 1:
        return None
    pair = compared_scores(study, [trial], record.task, split=record.split)
    return None if pair is None else weighted_estimate([pair])


def compare_cells(first: StudyRecords, second: StudyRecords) -> tuple[ComparedCell, ...]:
    """Subtract the first study from the second on every common task: the bases, then common arms.

    Scores are of the test split. They are paired item by item if the task's hash shows the same
    items, prompts and scoring. Otherwise the difference of two means has a two-sample interval. The
    same trials on the same items get no interval.
    """
    shared = [t.name for t in first.tasks if any(t.name == o.name for o in second.tasks)]
    cells = [c for name in shared if (c := _cell(first, second, (), (), name)) is not None]
    others = trials_by_arm(second.trials)
    trained = [
        c
        for point, arm in trials_by_arm(first.trials).items()
        if point in others
        for name in shared
        if (c := _cell(first, second, arm, others[point], name)) is not None
    ]
    return *cells, *trained


def paired_in(first: StudyRecords, second: StudyRecords, task: str) -> bool:
    """Whether both studies have the same test items, prompts, tokenizer, scorer and scoring
    settings."""
    one, two = first.task(task), second.task(task)
    same = one.test_sha256 == two.test_sha256 != ""
    return same or one.sha256 == two.sha256


def incomparable(one: TaskRecord, two: TaskRecord, paired: bool, same_base: bool) -> str | None:
    """Return why the scores of a task in two studies cannot be subtracted; None if they can.

    The unit of a log probability per token depends on the tokenizer. That is known to be the same
    only if the task's hash or the base is.
    """
    if one.metric != two.metric or one.score_unit != two.score_unit:
        return f"scored by {one.metric} and {two.metric}"
    if one.score_unit == "log_probability" and not paired and not same_base:
        return "nats per token of two bases whose tokenizers are not known to be the same"
    return None


def _cell(
    first: StudyRecords, second: StudyRecords, arm: _Trials, other: _Trials, task: str
) -> ComparedCell | None:
    """Compare one arm on one task; None without comparable scores. No trials mean the base."""
    one, two = _scores(first, arm, task), _scores(second, other, task)
    record, paired = first.task(task), paired_in(first, second, task)
    same_base = first.model.sha256 == second.model.sha256
    if not one or not two or incomparable(record, second.task(task), paired, same_base):
        return None
    means = [mean_estimate(one), mean_estimate(two)]
    if means[0] is None or means[1] is None:
        return None
    same = _ids(arm) == _ids(other) if arm else first.model == second.model
    # The base is one model, not a sample of seeds.
    items = align_scores(two, one, trained=bool(arm)) if paired else None
    difference = (
        unpaired_difference(means[1], means[0]) if items is None else weighted_estimate([items])
    )
    if same and items is not None:
        value, n, seeds = difference.value, difference.n, difference.seeds
        difference = Estimate(value=value, low=None, high=None, n=n, seeds=seeds)
    return ComparedCell(
        trained_on=arm[0].spec.task if arm else None,
        arm=arm[0].spec.arm_label if arm else None,
        rank=arm[0].spec.rank if arm else None,
        full=bool(arm) and arm[0].spec.is_full,
        tested_on=task,
        score_unit=record.score_unit,
        paired=items is not None,
        same_models=same,
        first=means[0],
        second=means[1],
        difference=difference,
    )


def _scores(study: StudyRecords, arm: _Trials, task: str) -> list[ItemScores]:
    return stored_scores(study, finished_trials(arm) if arm else None, task, "test")


def _ids(arm: _Trials) -> set[str]:
    return {t.spec.trial_id for t in finished_trials(arm)}
