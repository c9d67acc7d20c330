"""Arms that two studies both have, against each other: a function of both studies' records."""

from collections.abc import Sequence

from rankscope.advise.matching import compared, scores_of
from rankscope.advise.statistics import unpaired_difference, weighted_estimate
from rankscope.advise.summaries import Arm, adjusted_within_family, summarize
from rankscope.records import ComparedCell, Estimate, ItemScores, StudyRecords


def arms_by_point(study: StudyRecords) -> dict[tuple[object, ...], Arm]:
    """The arms of a study by all that was asked of them but the seed, training task included."""
    return {arm.trials[0].spec.arm: arm for arms in summarize(study).values() for arm in arms}


def compare_cells(first: StudyRecords, second: StudyRecords) -> tuple[ComparedCell, ...]:
    """Second minus first on every task that both scored: the bases, then every arm that both have.

    Report split. Item by item where a task's hash says that both asked the same questions in the
    same way; otherwise the two means stand beside each other with the interval of two samples.
    The p values of all arms on all tasks are one family (Holm).
    """
    shared = [t.name for t in first.tasks if any(t.name == o.name for o in second.tasks)]
    cells = [c for name in shared if (c := _cell(first, second, None, None, name)) is not None]
    others = arms_by_point(second)
    trained = [
        c
        for point, arm in arms_by_point(first).items()
        if point in others
        for name in shared
        if (c := _cell(first, second, arm, others[point], name)) is not None
    ]
    adjusted = adjusted_within_family([c.difference for c in trained])
    return (
        *cells,
        *(c.model_copy(update={"difference": e}) for c, e in zip(trained, adjusted, strict=True)),
    )


def paired_in(first: StudyRecords, second: StudyRecords, task: str) -> bool:
    """Whether both studies asked the same items of a task in the same way: its hash covers rows,
    prompts, tokenizer, scorer and the settings that scores depend on."""
    return first.task(task).sha256 == second.task(task).sha256


def _cell(
    first: StudyRecords, second: StudyRecords, arm: Arm | None, other: Arm | None, task: str
) -> ComparedCell | None:
    """One arm (None: the base) on one task; None where one study has no score of it, or where the
    two scores have not the same unit."""
    one, two = _scores(first, arm, task), _scores(second, other, task)
    record = first.task(task)
    if not one or not two or record.higher_is != second.task(task).higher_is:
        return None
    means = [_mean(one), _mean(two)]
    if means[0] is None or means[1] is None:
        return None
    # A base is one model and no sample of seeds.
    items = compared(two, one, trained=arm is not None) if paired_in(first, second, task) else None
    difference = (
        unpaired_difference(means[1], means[0]) if items is None else weighted_estimate([items])
    )
    return ComparedCell(
        trained_on=None if arm is None else arm.task,
        arm=None if arm is None else arm.summary.label,
        rank=None if arm is None else arm.summary.rank,
        tested_on=task,
        higher_is=record.higher_is,
        paired=items is not None,
        same_trials=arm is not None and other is not None and _ids(arm) == _ids(other),
        first=means[0],
        second=means[1],
        difference=difference,
    )


def _scores(study: StudyRecords, arm: Arm | None, task: str) -> list[ItemScores]:
    trials = () if arm is None else arm.finished
    return scores_of(study, trials, task, "report", base=arm is None)


def _mean(models: Sequence[ItemScores]) -> Estimate | None:
    found = compared(models, None, trained=False)
    return None if found is None else weighted_estimate([found], tested=False)


def _ids(arm: Arm) -> set[str]:
    return {t.spec.trial_id for t in arm.finished}
