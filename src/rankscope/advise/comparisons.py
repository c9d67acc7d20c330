"""Compare two arms, or an arm and the base, on the test split."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from rankscope.advise.arms import Arm, adjusted_within_family
from rankscope.advise.retention import retention_scale
from rankscope.advise.select import ArmChoice
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import (
    ScoreKind,
    align_scores,
    paired_scores,
    stored_scores,
    trials_with_all_scores,
)
from rankscope.records import BASE, ArmComparison, Estimate, StudyRecords, TrialRecords

_Trials = Sequence[TrialRecords]


def arm_difference(
    study: StudyRecords, first: Arm, second: Arm | None, task: str
) -> Estimate | None:
    """First arm minus second arm, or minus the base; None if either has no scores."""
    pair = _pair(study, first.finished, None if second is None else second.finished, task)
    return None if pair is None else weighted_estimate([pair])


def _pair(
    study: StudyRecords,
    first: _Trials,
    second: _Trials | None,
    task: str,
    measure: ScoreKind = "score",
) -> Comparison | None:
    if second is None:
        return paired_scores(study, first, task, "test", measure)
    rows, others = (
        stored_scores(study, trials, task, "test", measure) for trials in (first, second)
    )
    return align_scores(rows, others, trained=True)


def net_difference(
    study: StudyRecords, first: Arm, second: Arm | None, weights: tuple[float, float]
) -> Estimate | None:
    """Weighted gain minus weighted forgetting: first arm minus second arm, or minus the base.

    Forgetting has the scale of the training task (``retention.py``). Only trials scored on the task
    and on every retention task count, so that a row is the same trained model on all of them. If
    nothing measures forgetting, the gain alone counts. None if the score is missing, or if no trial
    has all scores.

    Args:
        weights: of gain and of forgetting.
    """
    scale = retention_scale(study, first.task)
    retention = [t.name for t in scale.tasks if (BASE, t.name, "test") in study.items]
    measures: dict[str, ScoreKind] = {first.task: "score"}
    shares = [weights[0]]
    if weights[1] and retention:
        measures |= dict.fromkeys(retention, scale.measure)
        shares += [weights[1] / len(retention) * scale.factor(name) for name in retention]
    complete, others = (
        None if arm is None else trials_with_all_scores(study, arm.finished, list(measures))
        for arm in (first, second)
    )
    pairs = [_pair(study, complete or (), others, *named) for named in measures.items()]
    known = [pair for pair in pairs if pair is not None]
    return weighted_estimate(known, shares) if len(known) == len(measures) else None


def compare_candidates(
    study: StudyRecords, choices: Mapping[str, ArmChoice]
) -> dict[str, tuple[ArmComparison, ...]]:
    """Each LoRA candidate against full fine-tuning, and each rank against the next, by task.

    Candidates have the learning rate chosen for them. The comparisons of all tasks are one family
    for Holm's correction.
    """
    by_task = {task: _compare_task(study, task, choice) for task, choice in choices.items()}
    family = [c.difference for of_task in by_task.values() for c in of_task]
    adjusted = iter(adjusted_within_family(family))
    return {
        task: tuple(c.model_copy(update={"difference": next(adjusted)}) for c in of_task)
        for task, of_task in by_task.items()
    }


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
        pairs += [("ranks", large, small) for small, large in itertools.pairwise(ranked)]
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
