"""Two arms against each other, and an arm against the base by what the study weighs."""

import itertools
from typing import Literal

from rankscope.advise.arms import Arm, adjusted_within_family, retention_tasks
from rankscope.advise.select import ArmChoice
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import (
    align_scores,
    paired_scores,
    stored_scores,
    trials_with_all_scores,
)
from rankscope.records import BASE, ArmComparison, Estimate, StudyRecords


def arm_difference(
    study: StudyRecords, first: Arm, second: Arm | None, task: str
) -> Estimate | None:
    """First arm minus second arm, or the base, on the test split; None where one is missing."""
    if second is None:
        found = paired_scores(study, first.finished, task, "test")
    else:
        one, other = (stored_scores(study, arm.finished, task, "test") for arm in (first, second))
        found = align_scores(one, other, trained=True)
    return None if found is None else weighted_estimate([found])


def net_difference(
    study: StudyRecords, first: Arm, second: Arm | None, weights: tuple[float, float]
) -> Estimate | None:
    """w_in times the difference in score less w_ret times that in forgetting, test split.

    First arm minus second arm, or minus the base; ``weights`` (w_in, w_ret). Only trials that were
    scored on the task and on every retention task count, so that one trained model is one row of
    all of them. Where nothing measures forgetting, the score alone counts. None where the score is
    missing, or no trial has all of it.
    """
    retention = [
        t.name for t in retention_tasks(study, first.task) if (BASE, t.name, "test") in study.items
    ]
    names, shares = [first.task], [weights[0]]
    if weights[1] and retention:
        names += retention
        shares += [weights[1] / len(retention)] * len(retention)
    one = trials_with_all_scores(study, first.finished, names, "test")
    other = (
        None if second is None else trials_with_all_scores(study, second.finished, names, "test")
    )
    pairs = []
    for name in names:
        if other is None:
            pairs.append(paired_scores(study, one, name, "test"))
        else:
            rows, others = (stored_scores(study, trials, name, "test") for trials in (one, other))
            pairs.append(align_scores(rows, others, trained=True))
    found = [c for c in pairs if c is not None]
    return weighted_estimate(found, shares) if len(found) == len(names) else None


def forgetting_difference(study: StudyRecords, first: Arm, second: Arm) -> float | None:
    """How much more the first arm forgot than the second, test split; None where unknown."""
    a, b = first.summary.forgetting, second.summary.forgetting
    return None if a is None or b is None else a.value - b.value


def compare_candidates(study: StudyRecords, task: str, choice: ArmChoice) -> list[ArmComparison]:
    """Every LoRA candidate against full fine-tuning, and each rank against the next.

    Each at the learning rate chosen for it; ranks that differ in nothing else. Beside neighbours
    the smallest rank is compared with the largest. Test split; Holm is not applied yet, since the
    family reaches over the study's tasks (``with_holm``).
    """
    pairs: list[tuple[Literal["full", "ranks"], Arm, Arm]] = []
    series: dict[tuple[object, ...], dict[int, Arm]] = {}
    for candidate in sorted(choice.candidates, key=lambda c: c.utility):
        arm = candidate.arm
        if choice.best_full is not None and not arm.summary.is_full:
            pairs.append(("full", arm, choice.best_full.arm))
        if arm.summary.is_lora and arm.summary.rank is not None:
            # Of several alphas the one of the highest utility stands for its rank.
            of_rank = series.setdefault(arm.trials[0].spec.arm_without_rank, {})
            of_rank[arm.summary.rank] = arm
    for of_rank in series.values():
        arms = [of_rank[rank] for rank in sorted(of_rank)]
        pairs += [("ranks", large, small) for small, large in itertools.pairwise(arms)]
        if len(arms) > 2:
            pairs.append(("ranks", arms[-1], arms[0]))
    return [
        ArmComparison(
            kind=kind,
            first_label=first.summary.label,
            second_label=second.summary.label,
            difference=found,
        )
        for kind, first, second in pairs
        if (found := arm_difference(study, first, second, task)) is not None
    ]


def with_holm(found: dict[str, list[ArmComparison]]) -> dict[str, tuple[ArmComparison, ...]]:
    """The comparisons of every task, their p adjusted within the family of all of them."""
    everything = [c.difference for of_task in found.values() for c in of_task]
    adjusted = iter(adjusted_within_family(everything))
    return {
        task: tuple(c.model_copy(update={"difference": next(adjusted)}) for c in of_task)
        for task, of_task in found.items()
    }
