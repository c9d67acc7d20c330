"""Mitigations of forgetting, compared at an equal in-domain score.

Scaling a trained update down, W0 + f (W - W0), needs no training, and forgets less as f goes to 0,
the base. A mitigation therefore has to forget less than the plain arm scaled to the *same* gain.

Gain and forgetting are interpolated linearly between strengths. If a curve reaches a gain more than
once, its least forgetting counts. A mitigated seed may gain more than the plain arm at any
strength. It is then compared with the plain arm at its largest gain, which favors the plain arm:
dropping the seed would select by the result.

The baseline's scores are the same mixture of the scores at two strengths, item by item, so a
difference gets an interval over seeds and items like any other (``statistics/``). The gain is
itself measured on items. An error d in it moves the difference by the slope of the curve times d,
so the in-domain items enter with that weight (delta method).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.evidence import Part
from rankscope.advise.retention import net_parts, retention_tasks
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import align_scores, scores_of_models
from rankscope.records import (
    BASE,
    FEWEST_SEEDS,
    Estimate,
    ScoredModel,
    Split,
    StudyRecords,
    TrialRecords,
    TrialSpec,
    Variant,
    finished_trials,
)

Strengths = Mapping[str, Sequence[float]]
"""Rising strengths at which a trial was scored, without 0 and 1, by trial id."""
ScaledModel = tuple[ScoredModel, float, float]
"""A model with its gain and its forgetting."""


class ScaledPoint(NamedTuple):
    """An arm with its update scaled to one strength; means over seeds, shares of 1 or nats."""

    strength: float  # 0 is the base and 1 the arm as trained
    gain: float  # In-domain: tuned minus base, test split
    forgetting: float  # Base minus tuned, mean over retention tasks, test split; positive = forgot
    net: float  # Net gain on the validation split; the highest is chosen
    seeds: int


class MitigationComparison(NamedTuple):
    """A mitigation compared with the plain arm scaled down to the same in-domain score."""

    label: str  # The mitigated arm
    plain: str  # Label of the arm whose scaling curve is the baseline
    gain: float  # In-domain gain, mean over the compared seeds
    forgetting: float
    baseline: float  # Forgetting of the plain arm scaled to the same gain, interpolated
    difference: Estimate
    """Forgetting minus baseline; negative is better than scaling. No interval below three seeds."""
    beyond: int
    """Number of seeds whose gain the plain arm reaches at no strength. Their baseline is its
    forgetting at its largest gain, which favors the plain arm."""


# --- scaling curves -----------------------------------------------------------------------------


def scaling_curves(study: StudyRecords, task: str) -> dict[str, list[ScaledPoint]]:
    """Return each arm's curve from the base to the trained model.

    It is empty if the study scored no scaled variant or has no retention task.
    """
    strengths, curves = _scored_strengths(study), dict[str, list[ScaledPoint]]()
    if not strengths:
        return curves
    arms = [arm for arm in trials_by_arm(study.trials).values() if arm[0].spec.task == task]
    parts = [part for part in net_parts(study, task) if part.weight]
    for arm in arms:
        found = [_scaling_curve(study, strengths, t.spec) for t in finished_trials(arm)]
        by_seed = [curve for curve in found if curve]
        shared = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
        if len(shared) > 1:
            points = [(s, [curve[s] for curve in by_seed]) for s in shared]
            curves[arm[0].spec.arm_label] = [
                ScaledPoint(
                    strength=strength,
                    gain=float(np.mean([gain for _, gain, _ in models])),
                    forgetting=float(np.mean([forgetting for _, _, forgetting in models])),
                    net=float(np.mean([_net_gain(study, parts, model) for model, _, _ in models])),
                    seeds=len(models),
                )
                for strength, models in points
            ]
    return curves


def _scored_strengths(study: StudyRecords) -> Strengths:
    variants = {model for model, _, _ in study.evals if isinstance(model, Variant)}
    strengths: dict[str, list[float]] = {}
    for variant in sorted(variants, key=lambda variant: variant.strength):
        if variant.kind == "scale":
            strengths.setdefault(variant.trial_id, []).append(variant.strength)
    return strengths


def _scaling_curve(
    study: StudyRecords, strengths: Strengths, trial: TrialSpec
) -> dict[float, ScaledModel]:
    """Return a trial's models by rising strength, the base at 0 and the trial itself at 1.

    It is empty without variants.
    """
    scaled = strengths.get(trial.trial_id, ())
    models: dict[float, ScoredModel] = {s: Variant(trial.trial_id, "scale", s) for s in scaled}
    models[1.0] = trial.trial_id
    curve = {
        s: (model, *changes)
        for s, model in models.items()
        if (changes := _gain_and_forgetting(study, trial.task, model)) is not None
    }
    if len(curve) < 2:
        return {}
    return {0.0: (BASE, 0.0, 0.0), **curve}


def _gain_and_forgetting(
    study: StudyRecords, task: str, model: ScoredModel
) -> tuple[float, float] | None:
    """Return gain on ``task`` and mean forgetting on the retention tasks; None if a score is
    missing."""
    gain = _change(study, model, task, "test")
    kept = [_change(study, model, t.name, "test") for t in retention_tasks(study, task)]
    known = [-change for change in kept if change is not None]
    if gain is None or not known or len(known) < len(kept):
        return None
    return gain, float(np.mean(known))


def _net_gain(study: StudyRecords, parts: Sequence[Part], model: ScoredModel) -> float:
    """Return net gain by the study's weights on validation; minus infinity without a score."""
    changes = [_change(study, model, p.task, "validation") for p in parts]
    known = [p.weight * c for p, c in zip(parts, changes, strict=True) if c is not None]
    return sum(known) if len(known) == len(parts) else -np.inf


def _change(study: StudyRecords, model: ScoredModel, task: str, split: Split) -> float | None:
    """Return the mean score minus the base's on their common items; None without any."""
    base, tuned = (scores_of_models(study, [m], task, split) for m in (BASE, model))
    pair = align_scores(tuned, base, trained=False)
    return None if pair is None else float(pair.item_means.mean())


# --- mitigations at an equal score --------------------------------------------------------------


def compare_mitigations(study: StudyRecords, task: str) -> list[MitigationComparison]:
    """Compare mitigated arms with their plain arms; empty without scaling curves of plain arms."""
    strengths = _scored_strengths(study)
    trials = [t for t in finished_trials(study.trials) if t.spec.task == task] if strengths else []
    plain = {(_plain_arm(t), t.spec.seed): t.spec for t in trials if not _is_mitigated(t)}
    by_label: dict[str, list[tuple[str, TrialSpec]]] = {}
    for trial in trials:
        spec, partner = trial.spec, plain.get((_plain_arm(trial), trial.spec.seed))
        if _is_mitigated(trial) and partner is not None:
            by_label.setdefault(spec.arm_label, []).append((spec.trial_id, partner))
    compared = [_comparison(study, strengths, label, pairs) for label, pairs in by_label.items()]
    return [c for c in compared if c is not None]


def _is_mitigated(trial: TrialRecords) -> bool:
    spec = trial.spec
    return bool(spec.mitigations or spec.dropout or spec.weight_decay)


def _plain_arm(trial: TrialRecords) -> tuple[object, ...]:
    settings = ("weight_decay", "replay", "replay_share", "kl_to_base", "early_stop")
    return trial.spec.model_copy(update={"dropout": 0.0, **dict.fromkeys(settings)}).arm


class Crossing(NamedTuple):
    """Point where a curve reaches a gain: ``share`` of the way from one of its models to
    another."""

    first: ScaledModel
    second: ScaledModel
    share: float
    slope: float  # Forgetting per gain there; 0 at the ends of the curve

    @property
    def forgetting(self) -> float:
        return self.first[2] + (self.second[2] - self.first[2]) * self.share


def crossing_at(curve: Sequence[ScaledModel], gain: float) -> Crossing:
    """Find where a piecewise linear curve reaches ``gain`` with the least forgetting.

    A gain outside the curve is moved to its nearest end.
    """
    gains = [g for _, g, _ in curve]
    gain = min(max(gain, min(gains)), max(gains))
    reached = [Crossing(point, point, 0.0, 0.0) for point in curve if point[1] == gain]
    for first, second in pairwise(curve):
        (_, g0, f0), (_, g1, f1) = first, second
        if min(g0, g1) <= gain <= max(g0, g1) and g0 != g1:
            reached.append(Crossing(first, second, (gain - g0) / (g1 - g0), (f1 - f0) / (g1 - g0)))
    return min(reached, key=lambda crossing: crossing.forgetting)


def _comparison(
    study: StudyRecords, strengths: Strengths, label: str, pairs: Sequence[tuple[str, TrialSpec]]
) -> MitigationComparison | None:
    """Compare (model, plain trial) of every seed; None without scaling curves of plain trials."""
    matches, beyond = list[tuple[ScaledModel, Crossing]](), 0
    for model, trial in pairs:
        curve = _scaling_curve(study, strengths, trial)
        changes = _gain_and_forgetting(study, trial.task, model)
        if curve and changes is not None:
            crossing = crossing_at(list(curve.values()), changes[0])
            matches.append(((model, *changes), crossing))
            beyond += changes[0] > max(gain for _, gain, _ in curve.values())
    if not matches:
        return None
    plain = pairs[0][1]
    return MitigationComparison(
        label=label,
        plain=plain.arm_label,
        gain=float(np.mean([gain for (_, gain, _), _ in matches])),
        forgetting=float(np.mean([forgetting for (_, _, forgetting), _ in matches])),
        baseline=float(np.mean([crossing.forgetting for _, crossing in matches])),
        difference=_difference_over_seeds(study, plain.task, matches),
        beyond=beyond,
    )


def _difference_over_seeds(
    study: StudyRecords, task: str, matches: Sequence[tuple[ScaledModel, Crossing]]
) -> Estimate:
    """Return the mean difference over seeds and retention tasks on the test split.

    The interval is None with fewer than ``FEWEST_SEEDS`` seeds, or if neither seeds nor items vary.
    """
    retained = [t.name for t in retention_tasks(study, task)]
    slopes = [crossing.slope for _, crossing in matches]
    parts = [_task_difference(study, name, matches) for name in retained]
    known = [p for p in (*parts, _task_difference(study, task, matches, slopes)) if p is not None]
    if len(matches) >= FEWEST_SEEDS and len(known) > len(retained):
        estimate = weighted_estimate(known, [*(1 / len(retained) for _ in retained), 1.0])
        if estimate.low is not None:
            return estimate
    return Estimate(
        value=float(np.mean([found[2] - crossing.forgetting for found, crossing in matches])),
        low=None,
        high=None,
        n=sum(part.tuned.shape[1] for part in known),
        seeds=len(matches),
    )


def _task_difference(
    study: StudyRecords,
    task: str,
    matches: Sequence[tuple[ScaledModel, Crossing]],
    slopes: Sequence[float] | None = None,
) -> Comparison | None:
    """Compare mixtures with models, item by item: their differences, (seeds, items).

    With ``slopes``, differences are centered per seed and multiplied by that seed's slope.
    """
    crossings = [crossing for _, crossing in matches]
    models = [found for found, _ in matches]
    models += [c.first for c in crossings] + [c.second for c in crossings]
    scores = scores_of_models(study, [name for name, _, _ in models], task, "test")
    aligned = align_scores(scores, None, trained=False) if len(scores) == len(models) else None
    if aligned is None:
        return None
    model, first, second = np.split(aligned.tuned, 3)
    share = np.array([[crossing.share] for crossing in crossings])
    rows = (1 - share) * first + share * second - model
    if slopes is not None:
        # ``share`` was chosen to make this mean zero; what remains is its error.
        rows = np.array(slopes)[:, None] * (rows - rows.mean(axis=1, keepdims=True))
    return Comparison(rows, np.zeros(rows.shape[1]), aligned.clusters)
