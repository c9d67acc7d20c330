"""How forgetting is measured, and how gain and forgetting become one net gain.

Forgetting is shown in the retention tasks' own unit: points, or nats per token if all of them are
held-out text. A net gain needs one scale:

- Points against points are weighed as they are.
- A gain in nats per token has no natural size, so both are shares: the gain of the largest gain of
  any arm, the fall of retention of what the base had above chance (of its log-probability where
  that is little, and of its cross-entropy for text).
- A gain in points is weighed against text by the rise of its cross-entropy relative to the base's:
  1 % more counts as 1 point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from rankscope.advise.evidence import SCORED_SPLITS, Part, measure
from rankscope.advise.posterior import Array
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import ScoreKind, compared_scores
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import (
    BASE,
    Estimate,
    ForgettingScale,
    ItemScores,
    ScaleName,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    trained_parts,
)

SCALES: dict[ScaleName, str] = {
    "unmeasured": "No retention task measures forgetting, so the gain alone counts.",
    "points": "Forgetting is the mean fall over the retention tasks, in points like the gain.",
    "nats": "Forgetting is the mean fall over the retention tasks, in nats per token.",
    "shares": "The gain is in nats per token, so both are counted as shares: the gain as a share "
    "of the largest gain of any arm, forgetting as a share of what the base knew of the retention "
    "tasks.",
    "relative": "Gain and forgetting have different units, so nats are weighed relative to the "
    "base's cross-entropy: 1 % of it counts as 1 point.",
}
"""How forgetting is weighed against the gain, as ``check``, the page and the model card give it."""

LEAST_GAIN = 0.1
"""A gain is a share of at least so many nats per token: the largest of gains that are all noise is
no measure."""


LEAST_KNOWN = 0.25
"""A fall is a share of at least so much accuracy above chance. If the base knew less, a few items
would be a large share, and the right answers' log-probability shows more."""


@dataclass(frozen=True, slots=True)
class NetScale:
    """The changes whose weighted sum is the net gain of an arm trained on one task."""

    name: ScaleName
    parts: tuple[Part, ...]
    largest_gain: float | None = None  # Nats per token that count as 1; only for ``shares``

    @property
    def record(self) -> ForgettingScale:
        text = SCALES[self.name]
        if self.largest_gain is not None:
            others = len(self.parts) > 1
            if not others:
                text = "The gain is in nats per token and counted as a share of the largest one."
            text += f" 100 % are {self.largest_gain:.3g} nats per token"
            text += ", and more than 100 % is a gain with better retention." if others else "."
        return ForgettingScale(name=self.name, text=text)


def scale_name(
    gain_unit: str | None, retention_units: Sequence[str | None], objective: ObjectiveConfig
) -> ScaleName:
    """The scale by the units of the training task and of its retention tasks alone."""
    in_accuracy = "accuracy" in retention_units
    if objective.in_domain == 0:
        return "points" if in_accuracy else "nats"
    if gain_unit != "accuracy" and objective.scale != "nats":
        return "shares"
    if not retention_units:
        return "unmeasured"
    if in_accuracy == (gain_unit == "accuracy"):
        return "points" if in_accuracy else "nats"
    return "nats" if in_accuracy else "relative"


def retained_tasks(tasks: Sequence[TaskRecord], trained: str) -> list[TaskRecord]:
    """Retention tasks of an arm trained on ``trained``, those scored by accuracy first."""
    trained_names = trained_parts(tasks, trained)
    retained = [t for t in tasks if "retention" in t.roles and t.name not in trained_names]
    return sorted(retained, key=lambda t: t.score_unit != "accuracy")


def scale_notes(tasks: Sequence[TaskRecord], objective: ObjectiveConfig) -> list[str]:
    """What ``check`` and ``plan`` say of forgetting that is not in the gain's unit."""
    notes = []
    for task in [t for t in tasks if t.trained_on]:
        retained = [t.score_unit for t in retained_tasks(tasks, task.name)]
        name = scale_name(task.score_unit, retained, objective)
        if objective.retention and retained and name in ("shares", "relative"):
            notes.append(f"{task.name}: {SCALES[name][0].lower()}{SCALES[name][1:-1]}")
    return notes


def retention_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Tasks whose mean is the forgetting that is shown for an arm trained on ``trained``.

    They share one unit: accuracy if any retention task has it, otherwise log probability.
    """
    retained = retained_tasks(study.tasks, trained)
    return tuple(t for t in retained if t.score_unit == retained[0].score_unit)


def forgetting_parts(study: StudyRecords, trained: str) -> tuple[Part, ...]:
    """The changes whose sum is the forgetting that is shown."""
    own = [t for t in retention_tasks(study, trained) if base_items(study, t.name)]
    return tuple(Part(t.name, "score", -1 / len(own)) for t in own)


def net_scale(
    study: StudyRecords, trained: str, arms: Sequence[Sequence[TrialRecords]]
) -> NetScale:
    """How the arms trained on ``trained`` are weighed; parts without weight are left out."""
    objective = study.config.objective
    weight, kept = objective.weights
    task, own = study.task(trained), retention_tasks(study, trained)
    units = [t.score_unit for t in retained_tasks(study.tasks, trained)]
    name, unit = scale_name(task.score_unit, units, objective), 1.0
    largest = None
    if name == "shares":
        gains = measure(study, [Part(trained, "score", 1.0)], arms)
        largest = max(LEAST_GAIN, *(gains[0].means if gains else ()), LEAST_GAIN)
        unit = 1 / largest
    parts = [Part(trained, "score", weight * unit)] if weight else []
    scored = [t for t in own if base_items(study, t.name)]
    for retained in scored if kept else ():
        kind, factor = _retained_unit(study, retained, name)
        parts.append(Part(retained.name, kind, kept * factor / len(scored)))
    return NetScale(name, tuple(parts), largest)


def _retained_unit(
    study: StudyRecords, task: TaskRecord, scale: ScaleName
) -> tuple[ScoreKind, float]:
    """What is compared of a retention task, and by what its fall is multiplied."""
    if task.score_unit != "accuracy":
        is_relative = scale in ("shares", "relative")
        return "score", 1 / cross_entropy(study, task.name) if is_relative else 1.0
    if scale == "nats":
        return "gold_logprob" if has_gold_logprobs(study, task.name) else "score", 1.0
    if scale != "shares":
        return "score", 1.0
    above = above_chance(study, task)
    if above is not None and above >= LEAST_KNOWN:
        return "score", 1 / above
    if not has_gold_logprobs(study, task.name):
        return "score", 1.0
    logprobs = np.concatenate([i.gold_logprobs for i in base_items(study, task.name)])
    logprobs = logprobs[logprobs < 0]  # NaN is no item
    return "gold_logprob", 1 / max(0.1, -float(logprobs.mean()) if logprobs.size else 1.0)


def above_chance(study: StudyRecords, task: TaskRecord) -> float | None:
    """The base's accuracy above guessing; None if it is not shown to be above it.

    Written answers are never right by guessing.
    """
    scores = all_base_scores(study, task.name)
    if scores.size < 2:
        return None
    above = float(scores.mean()) - (task.chance or 0.0)
    return above if above > 2 * float(scores.std(ddof=1)) / sqrt(scores.size) else None


def base_items(study: StudyRecords, task: str) -> list[ItemScores]:
    """What the base answered of a task: the validation split, then the test split."""
    return [found for s in SCORED_SPLITS if (found := study.items.get((BASE, task, s))) is not None]


def all_base_scores(study: StudyRecords, task: str) -> Array:
    scores = [np.empty(0), *(items.scores for items in base_items(study, task))]
    joined: Array = np.concatenate(scores)
    return joined[np.isfinite(joined)]


def mean_fall(
    study: StudyRecords,
    done: Sequence[TrialRecords],
    tasks: Sequence[TaskRecord],
    measure: ScoreKind = "score",
) -> Estimate | None:
    """Base minus tuned, mean over the scored tasks, over the trials that have all their scores.

    The tasks share the seeds, so each trained model must be the same row in every task.
    """
    known = [t.name for t in tasks if compared_scores(study, done, t.name, measure)]
    complete = [t for t in done if all((t.spec.trial_id, n, "test") in study.items for n in known)]
    pairs = [compared_scores(study, complete, name, measure) for name in known]
    found = [pair for pair in pairs if pair is not None]
    return -weighted_estimate(found) if found and len(found) == len(known) else None


def has_gold_logprobs(study: StudyRecords, task: str) -> bool:
    """Whether the base's right answers have log-probabilities."""
    found = base_items(study, task)
    return not found or any(bool((items.gold_logprobs <= 0).any()) for items in found)


def cross_entropy(study: StudyRecords, task: str) -> float:
    """The base's mean cross-entropy, nats per token; 1 if it is not known."""
    scores = all_base_scores(study, task)
    return abs(float(scores.mean())) or 1.0 if scores.size else 1.0
