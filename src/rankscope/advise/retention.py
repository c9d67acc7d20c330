"""How forgetting is measured, and weighed against the gain, for arms trained on one task.

Forgetting is shown in the retention tasks' own unit: points, or nats per token if all of them are
held-out text. A sum with the gain needs one unit:

- Gain and forgetting in the same unit are weighed as they are.
- A gain in nats per token is weighed against the fall of the right answers' log-probability on the
  retention items, nats per token. If answers are offered, it is that of the right one among them
  (``records.gold_logprobs_per_token``): a model that expects another form of answer has not
  forgotten which one is right. Held-out text is weighed by its own score.
- A gain in points is weighed against the rise of the text's cross-entropy relative to the base's:
  1 % more counts as 1 point. Right answers without a log-probability count likewise against a gain
  in nats: 1 point as 1 % of the base's cross-entropy on the training task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import (
    ScoreKind,
    base_scores,
    compared_scores,
    trials_with_all_scores,
)
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import (
    BASE,
    FEWEST_SEEDS,
    Estimate,
    ForgettingScale,
    ScaleName,
    Split,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    trained_parts,
)

SCALES: dict[ScaleName, str] = {
    "unmeasured": "No retention task measures forgetting, so the gain alone counts.",
    "points": "Forgetting is the mean fall over the retention tasks, in points like the gain.",
    "nats": "Forgetting is the mean fall over the retention tasks, in nats per token.",
    "gold_logprob": "The gain is in nats per token, so forgetting is weighed in the same unit: the "
    "mean fall over the retention tasks of the right answer's log-probability per token, among the "
    "answers offered if there are any.",
    "relative": "Gain and forgetting have different units, so nats are weighed relative to the "
    "base's cross-entropy: 1 % of it counts as 1 point.",
}
"""How forgetting is weighed against the gain, as ``check``, the page and the model card give it."""


@dataclass(frozen=True, slots=True)
class RetentionScale:
    """The retention tasks that are weighed against the gain on one training task, and how."""

    name: ScaleName
    tasks: tuple[TaskRecord, ...] = ()
    measure: ScoreKind = "score"
    factors: Mapping[str, float] | None = None
    """Task -> factor of its change; None if every factor is 1."""

    def factor(self, task: str) -> float:
        return 1.0 if self.factors is None else self.factors[task]

    @property
    def record(self) -> ForgettingScale:
        return ForgettingScale(name=self.name, text=SCALES[self.name])


def scale_name(
    gain_unit: str | None, retention_units: Sequence[str | None], weighs_gain: bool
) -> ScaleName:
    """The scale by the units of the training task and of its retention tasks alone.

    Log-probabilities of right answers are taken to be known.
    """
    if not retention_units:
        return "unmeasured"
    in_accuracy = "accuracy" in retention_units
    if not weighs_gain or in_accuracy == (gain_unit == "accuracy"):
        return "points" if in_accuracy else "nats"
    return "gold_logprob" if in_accuracy else "relative"


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
        name = scale_name(task.score_unit, retained, objective.in_domain > 0)
        if objective.retention and name in ("gold_logprob", "relative"):
            notes.append(f"{task.name}: {SCALES[name][0].lower()}{SCALES[name][1:-1]}")
    return notes


def retention_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Tasks whose mean is the forgetting that is shown for an arm trained on ``trained``.

    They share one unit: accuracy if any retention task has it, otherwise log probability.
    """
    retained = retained_tasks(study.tasks, trained)
    return tuple(t for t in retained if t.score_unit == retained[0].score_unit)


def retention_scale(study: StudyRecords, trained: str) -> RetentionScale:
    """How the forgetting of an arm trained on ``trained`` is weighed."""
    retained, own = retained_tasks(study.tasks, trained), retention_tasks(study, trained)
    gain_unit, units = study.task(trained).score_unit, [t.score_unit for t in retained]
    name = scale_name(gain_unit, units, study.config.objective.in_domain > 0)
    if name == "gold_logprob":
        known = [
            t for t in retained if t.score_unit != "accuracy" or has_gold_logprobs(study, t.name)
        ]
        if known:
            return RetentionScale(name, tuple(known), "gold_logprob")
        entropy = cross_entropy(study, trained)
        return RetentionScale("relative", own, factors={t.name: entropy for t in own})
    if name == "relative":
        factors = {t.name: 1 / cross_entropy(study, t.name) for t in own}
        return RetentionScale(name, own, factors=factors)
    return RetentionScale(name, own)


def shown_scale(study: StudyRecords, trained: str) -> RetentionScale:
    """Of the forgetting that is shown: the mean over ``retention_tasks`` in their own unit."""
    return RetentionScale("points", retention_tasks(study, trained))


def logprob_scale(study: StudyRecords, trained: str) -> RetentionScale:
    """Of the right answers' log-probability on every retention task that has them."""
    retained = retained_tasks(study.tasks, trained)
    known = tuple(t for t in retained if has_gold_logprobs(study, t.name))
    return RetentionScale("nats", known, "gold_logprob")


def mean_fall(
    study: StudyRecords, done: Sequence[TrialRecords], scale: RetentionScale
) -> Estimate | None:
    """Base minus tuned, mean over the scored tasks, over the trials that have all their scores.

    The tasks share the seeds, so each trained model must be the same row in every task.
    """
    found = _falls(study, done, scale)
    return None if found is None else -weighted_estimate(*found)


def forgot_as_trained(
    study: StudyRecords, done: Sequence[TrialRecords], scale: RetentionScale
) -> bool:
    """Whether the models at hand forgot: each lost, and their mean loss is clear by its items.

    The models are taken as given and only the items as a sample, so this is about these models on
    other items; ``mean_fall`` is about other seeds too. One test of the mean, so no correction;
    that each lost only makes it stricter. From ``FEWEST_SEEDS`` models on, whose interval over
    seeds is informative, each loss must be clear by itself.
    """
    found = _falls(study, done, scale)
    if found is None:
        return False
    pairs, shares = found
    models = [[*pair.tuned, pair.tuned.mean(axis=0)] for pair in pairs]
    *each, mean = (
        weighted_estimate(
            [replace(p, tuned=one[None]) for p, one in zip(pairs, ones, strict=True)],
            shares,
            tested=False,
        )
        for ones in zip(*models, strict=True)
    )
    if len(each) >= FEWEST_SEEDS:
        return all(one.is_below(0) for one in each)
    return mean.is_below(0) and all(one.value < 0 for one in each)


def _falls(
    study: StudyRecords, done: Sequence[TrialRecords], scale: RetentionScale
) -> tuple[list[Comparison], list[float]] | None:
    """The comparisons whose weighted sum is minus ``mean_fall``, and their weights."""

    def pairs_of(trials: Sequence[TrialRecords]) -> dict[str, Comparison]:
        compared = {
            t.name: compared_scores(study, trials, None, t.name, scale.measure) for t in scale.tasks
        }
        return {name: pair for name, pair in compared.items() if pair is not None}

    known = pairs_of(done)
    pairs = pairs_of(trials_with_all_scores(study, done, list(known)))
    if not pairs or len(pairs) < len(known):
        return None
    return list(pairs.values()), [scale.factor(name) / len(pairs) for name in pairs]


def net_gain(
    study: StudyRecords,
    task: str,
    trials: Sequence[TrialRecords],
    others: Sequence[TrialRecords] | None,
    weights: tuple[float, float],
) -> Estimate | None:
    """Weighted gain minus weighted forgetting of trials on a training task, test split.

    Against the base, or against the net gain of other trials; None if ``net_comparisons`` is.
    """
    found = net_comparisons(study, task, trials, others, weights)
    return None if found is None else weighted_estimate(*found)


def net_comparisons(
    study: StudyRecords,
    task: str,
    trials: Sequence[TrialRecords],
    others: Sequence[TrialRecords] | None,
    weights: tuple[float, float],
    split: Split = "test",
) -> tuple[list[Comparison], list[float]] | None:
    """The comparisons whose weighted sum is a net gain, and their weights.

    Against the base, or against other trials. Forgetting has the scale of the training task. Only
    trials scored on the task and on every retention task count, so that a row is the same trained
    model on all of them. If nothing measures forgetting, the gain alone counts. None if the score
    is missing, or if no trial has all scores.

    Args:
        weights: of gain and of forgetting.
    """
    scale = retention_scale(study, task)
    retention = [t.name for t in scale.tasks if (BASE, t.name, split) in study.items]
    measures: dict[str, ScoreKind] = {task: "score"}
    shares = [weights[0]]
    if weights[1] and retention:
        measures |= dict.fromkeys(retention, scale.measure)
        shares += [weights[1] / len(retention) * scale.factor(name) for name in retention]
    complete, complete_others = (
        None if models is None else trials_with_all_scores(study, models, list(measures), split)
        for models in (trials, others)
    )
    pairs = [
        compared_scores(study, complete or (), complete_others, *named, split)
        for named in measures.items()
    ]
    known = [pair for pair in pairs if pair is not None]
    return (known, shares) if len(known) == len(measures) else None


def has_gold_logprobs(study: StudyRecords, task: str) -> bool:
    """Whether the base's right answers on the test split have log-probabilities."""
    base = study.items.get((BASE, task, "test"))
    return base is None or bool(np.isfinite(base.gold_logprobs).any())


def cross_entropy(study: StudyRecords, task: str) -> float:
    """The base's mean cross-entropy on the test split, nats per token; 1 if it is not known."""
    scores = base_scores(study, task)
    return abs(float(scores.mean())) or 1.0 if scores.size else 1.0
