"""Compare two arms, or an arm and the base, on the test split."""

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import Literal

from rankscope.advise.arms import Arm, adjusted_records
from rankscope.advise.retention import net_gain
from rankscope.advise.select import ArmChoice
from rankscope.advise.statistics.matching import score_difference
from rankscope.records import ArmComparison, Estimate, StudyRecords


def arm_difference(
    study: StudyRecords, first: Arm, second: Arm | None, task: str
) -> Estimate | None:
    """First arm minus second arm, or minus the base; None if either has no scores."""
    others = None if second is None else second.finished
    return score_difference(study, first.finished, others, task)


def net_difference(
    study: StudyRecords, first: Arm, second: Arm | None, weights: tuple[float, float]
) -> Estimate | None:
    """Net gain of the first arm minus that of the second; see :func:`net_gain`."""
    others = None if second is None else second.finished
    return net_gain(study, first.task, first.finished, others, weights)


def compare_candidates(
    study: StudyRecords, choices: Mapping[str, ArmChoice]
) -> dict[str, tuple[ArmComparison, ...]]:
    """Each LoRA candidate against full fine-tuning, and each rank against the next, by task.

    Candidates have the learning rate chosen for them. The comparisons of all tasks are one family
    for Holm's correction.
    """
    by_task = {task: _compare_task(study, task, choice) for task, choice in choices.items()}
    family = [comparison for of_task in by_task.values() for comparison in of_task]
    adjusted = iter(adjusted_records(family, "difference"))
    return {task: tuple(islice(adjusted, len(of_task))) for task, of_task in by_task.items()}


def _compare_task(study: StudyRecords, task: str, choice: ArmChoice) -> list[ArmComparison]:
    pairs: list[tuple[Literal["full", "ranks"], Arm, Arm]] = []
    series: dict[tuple[object, ...], dict[int, Arm]] = {}
    for candidate in sorted(choice.candidates, key=lambda c: c.utility):
        arm = candidate.arm
        if choice.best_full is not None and not arm.summary.is_full:
            pairs.append(("full", arm, choice.best_full.arm))
        if arm.summary.is_lora and arm.summary.rank is not None:
            # The candidates rise in utility: of several alphas the best one represents its rank.
            of_rank = series.setdefault(arm.trials[0].spec.arm_without_rank, {})
            of_rank[arm.summary.rank] = arm
    for of_rank in series.values():
        # Neighboring ranks, then the largest and the smallest one.
        ranked = [of_rank[rank] for rank in sorted(of_rank)]
        pairs += [("ranks", large, small) for small, large in pairwise(ranked)]
        if len(ranked) > 2:
            pairs.append(("ranks", ranked[-1], ranked[0]))
    return [
        ArmComparison(
            kind=kind,
            first_label=first.summary.label,
            second_label=second.summary.label,
            difference=difference,
        )
        for kind, first, second in pairs
        if (difference := arm_difference(study, first, second, task)) is not None
    ]
