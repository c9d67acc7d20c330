"""Tasks that measure forgetting, and the sum of gain and forgetting as one net gain.

Changes have one unit, whatever was measured: 0.01 of an accuracy, which is a point, counts as much
as 0.01 nats per token, which is 1 % of perplexity. docs/methods.md, "Units".
"""

from collections.abc import Sequence

from rankscope.advise.evidence import SCORED_SPLITS, Part
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import compared_scores
from rankscope.records import (
    BASE,
    Estimate,
    ItemScores,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    trained_parts,
)


def retention_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Return the tasks whose mean fall is the forgetting of an arm trained on ``trained``."""
    seen = trained_parts(study.tasks, trained)
    return tuple(t for t in study.tasks if "retention" in t.roles and t.name not in seen)


def net_parts(study: StudyRecords, trained: str) -> tuple[Part, ...]:
    """Return the changes whose weighted sum is the net gain of an arm trained on ``trained``.

    The training task comes first, then every retention task that the base has scores on. Some of
    them may have no weight.
    """
    weight, kept = study.config.objective.weights
    scored = [t.name for t in retention_tasks(study, trained) if base_items(study, t.name)]
    return Part(trained, weight), *(Part(name, kept / len(scored)) for name in scored)


def base_items(study: StudyRecords, task: str) -> list[ItemScores]:
    """Return the base's answers to a task: the validation split, then the test split."""
    return [found for s in SCORED_SPLITS if (found := study.items.get((BASE, task, s))) is not None]


def mean_fall(
    study: StudyRecords, done: Sequence[TrialRecords], tasks: Sequence[TaskRecord]
) -> Estimate | None:
    """Return base minus tuned, mean over the scored tasks, over trials that have all their scores.

    The tasks share the seeds, so each trained model must be the same row in every task.
    """
    known = [t.name for t in tasks if compared_scores(study, done, t.name)]
    complete = [t for t in done if all((t.spec.trial_id, n, "test") in study.items for n in known)]
    pairs = [compared_scores(study, complete, name) for name in known]
    found = [pair for pair in pairs if pair is not None]
    return -weighted_estimate(found) if found and len(found) == len(known) else None
