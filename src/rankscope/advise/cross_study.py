"""Arms that two studies both have, against each other: a function of both studies' records."""

from collections.abc import Sequence

from rankscope.advise.arms import adjusted_within_family, trials_by_arm
from rankscope.advise.statistics.estimates import unpaired_difference, weighted_estimate
from rankscope.advise.statistics.matching import align_scores, stored_scores
from rankscope.records import (
    ComparedCell,
    Estimate,
    ItemScores,
    StudyRecords,
    TaskRecord,
    TrialRecords,
)

_Trials = Sequence[TrialRecords]


def compare_cells(first: StudyRecords, second: StudyRecords) -> tuple[ComparedCell, ...]:
    """Second minus first on every task that both scored: the bases, then every arm that both have.

    Test split. Item by item where a task's hash says that both asked the same questions in the
    same way; otherwise the two means stand beside each other with the interval of two samples.
    The p values of all arms on all tasks that are paired are one family (Holm); those of the bases
    stand outside it. Of the very same trials on the same items there is nothing to estimate.
    """
    shared = [t.name for t in first.tasks if any(t.name == o.name for o in second.tasks)]
    cells = [c for name in shared if (c := _cell(first, second, (), (), name)) is not None]
    others = trials_by_arm(second)
    trained = [
        c
        for point, arm in trials_by_arm(first).items()
        if point in others
        for name in shared
        if (c := _cell(first, second, arm, others[point], name)) is not None
    ]
    adjusted = iter(adjusted_within_family([c.difference for c in trained if _is_tested(c)]))
    return (
        *cells,
        *(
            c.model_copy(update={"difference": next(adjusted)}) if _is_tested(c) else c
            for c in trained
        ),
    )


def _is_tested(cell: ComparedCell) -> bool:
    """Whether there is a test: of the same models, or of two samples of items, there is none."""
    return cell.paired and not cell.same_models


def paired_in(first: StudyRecords, second: StudyRecords, task: str) -> bool:
    """Whether both studies asked the same test items of a task in the same way: the hash covers
    them, prompts, tokenizer, scorer and the settings that scores depend on, not training rows."""
    one, two = first.task(task), second.task(task)
    same = one.test_sha256 == two.test_sha256 != ""
    return same or one.sha256 == two.sha256


def incomparable(one: TaskRecord, two: TaskRecord, paired: bool, same_base: bool) -> str | None:
    """Why scores of a task in two studies may not be subtracted; None where they may.

    A log-probability per token has the tokenizer's unit. A study's records do not hold the
    tokenizer by itself: it is known to be the same where the task's hash or the base is.
    """
    if one.metric != two.metric or one.score_unit != two.score_unit:
        return f"scored by {one.metric} and {two.metric}"
    if one.score_unit == "log_probability" and not paired and not same_base:
        return "nats per token of two bases whose tokenizers are not known to be the same"
    return None


def _cell(
    first: StudyRecords, second: StudyRecords, arm: _Trials, other: _Trials, task: str
) -> ComparedCell | None:
    """One arm (no trials: the base) on one task.

    None where one study has no score of it, or where the scores are ``incomparable``.
    """
    one, two = _scores(first, arm, task), _scores(second, other, task)
    record, paired = first.task(task), paired_in(first, second, task)
    same_base = first.model.sha256 == second.model.sha256
    if not one or not two or incomparable(record, second.task(task), paired, same_base):
        return None
    means = [_mean(one), _mean(two)]
    if means[0] is None or means[1] is None:
        return None
    same = _ids(arm) == _ids(other) if arm else first.model == second.model
    # A base is one model and no sample of seeds.
    items = align_scores(two, one, trained=bool(arm)) if paired else None
    difference = (
        unpaired_difference(means[1], means[0]) if items is None else weighted_estimate([items])
    )
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
        difference=_without_interval(difference) if same and items is not None else difference,
    )


def _without_interval(estimate: Estimate) -> Estimate:
    """Of the same models on the same items: seeds and items that could be others are no matter."""
    return Estimate(value=estimate.value, low=None, high=None, n=estimate.n, seeds=estimate.seeds)


def _scores(study: StudyRecords, arm: _Trials, task: str) -> list[ItemScores]:
    finished = [trial for trial in arm if trial.status == "done"]
    return stored_scores(study, finished, task, "test", base=not arm)


def _mean(models: Sequence[ItemScores]) -> Estimate | None:
    found = align_scores(models, None, trained=False)
    return None if found is None else weighted_estimate([found], tested=False)


def _ids(arm: _Trials) -> set[str]:
    return {t.spec.trial_id for t in arm if t.status == "done"}
