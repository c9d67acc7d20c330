"""Mitigations of forgetting, compared at an equal in-domain score.

Scaling a trained update down, W0 + f (W - W0), needs no training and forgets less as f goes to 0,
the base. A mitigation therefore has to forget less than the plain arm scaled to the *same* gain.
Gain and forgetting are interpolated linearly between strengths; if a curve reaches a gain more than
once, its least forgetting counts. If a mitigated seed gains more than the plain arm at any
strength, it is compared with the plain arm at its largest gain, which favors the plain arm;
dropping the seed would select by the result.

The baseline's scores are the same mixture of the scores at two strengths, item by item, so a
difference gets an interval over seeds and items like any other (``statistics/``). The gain is
itself measured on items: an error d in it moves the difference by the slope of the curve times d,
so the in-domain items enter with that weight (delta method). All comparisons of a training task
form one Holm family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import numpy.typing as npt

from rankscope.advise.arms import adjusted_records, training_tasks, trials_by_arm
from rankscope.advise.evidence import Part
from rankscope.advise.retention import net_scale, retention_tasks
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import ScoreKind, align_scores, scores_of_models
from rankscope.records import (
    BASE,
    FEWEST_SEEDS,
    Estimate,
    MitigationComparison,
    ScaledPoint,
    ScalingCurve,
    Split,
    StudyRecords,
    TaskMitigation,
    TrialRecords,
    Variant,
    VariantKind,
    finished_trials,
    trial_of,
    variant_of,
)

GainAndForgetting = tuple[float, float]  # (gain, forgetting) of one trained trial at one strength


def compare_mitigations(study: StudyRecords) -> tuple[TaskMitigation, ...]:
    """Scaling curves of every arm and comparisons with mitigations, by training task.

    Empty if the study scored no scaled variant or has no retention task.
    """
    variants = _ScoredVariants.of(study)
    if not variants.strengths:
        return ()
    tasks = []
    for task in training_tasks(study):
        trials = [t for t in finished_trials(study.trials) if t.spec.task == task]
        curves = [c for arm in trials_by_arm(trials).values() for c in _curves(variants, arm)]
        if curves:
            compared = tuple(adjusted_records(_comparisons(variants, trials), "difference"))
            tasks.append(TaskMitigation(task=task, curves=tuple(curves), comparisons=compared))
    return tuple(tasks)


def gain_and_forgetting(
    study: StudyRecords, task: str, model: str, split: Split
) -> GainAndForgetting | None:
    """Gain on ``task`` and mean forgetting on the retention tasks; None if a score is missing."""
    gain = _change(study, model, task, split)
    kept = [_change(study, model, t.name, split) for t in retention_tasks(study, task)]
    known = [-change for change in kept if change is not None]
    if gain is None or not known or len(known) < len(kept):
        return None
    return gain, float(np.mean(known))


def _net_gain(study: StudyRecords, parts: Sequence[Part], model: str) -> float:
    """By the study's weights and scale, on the validation split; minus infinity without a score."""
    changes = [_change(study, model, p.task, "validation", p.measure) for p in parts]
    known = [p.weight * c for p, c in zip(parts, changes, strict=True) if c is not None]
    return sum(known) if len(known) == len(parts) else -np.inf


def _change(
    study: StudyRecords, model: str, task: str, split: Split, measure: ScoreKind = "score"
) -> float | None:
    """Mean score minus the base's on their common items; None without any."""
    base, tuned = (scores_of_models(study, [m], task, split, measure) for m in (BASE, model))
    pair = align_scores(tuned, base, trained=False)
    return None if pair is None else float(pair.item_means.mean())


@dataclass(frozen=True, slots=True)
class _ScoredVariants:
    """A study with the strengths at which its trials were scored as variants."""

    study: StudyRecords
    strengths: Mapping[tuple[str, VariantKind], tuple[float, ...]]
    """(trial id, kind) -> strengths in ascending order, without 0 and 1."""

    @classmethod
    def of(cls, study: StudyRecords) -> "_ScoredVariants":
        strengths: dict[tuple[str, VariantKind], set[float]] = {}
        for model, _, _ in study.evals:
            variant = variant_of(model)
            if variant is not None and variant.kind != "truncated":
                strengths.setdefault((trial_of(model), variant.kind), set()).add(variant.strength)
        return cls(study, {key: tuple(sorted(values)) for key, values in strengths.items()})

    def curve(
        self, trial: TrialRecords, kind: VariantKind, split: Split
    ) -> dict[float, GainAndForgetting] | None:
        """A trial's scaling curve by strength, with the trial itself at 1; None without variants.

        Only the curve of kind ``scale`` includes the base: the other kinds leave a part of the
        update unchanged at strength 0.
        """
        trial_id = trial.spec.trial_id
        strengths = self.strengths.get((trial_id, kind), ())
        if not strengths:
            return None
        models = {s: Variant(kind, s).of(trial_id) for s in strengths} | {1.0: trial_id}
        points = {
            s: point
            for s, model in models.items()
            for point in [gain_and_forgetting(self.study, trial.spec.task, model, split)]
            if point is not None
        }
        if len(points) < 2:
            return None
        return {0.0: (0.0, 0.0), **points} if kind == "scale" else points


def _curves(variants: _ScoredVariants, arm: Sequence[TrialRecords]) -> list[ScalingCurve]:
    study, task = variants.study, arm[0].spec.task
    arms = [a for a in trials_by_arm(study.trials).values() if a[0].spec.task == task]
    parts = net_scale(study, task, arms).parts
    curves = []
    for kind in get_args(VariantKind):
        test = [c for t in arm if (c := variants.curve(t, kind, "test"))]
        validation = [c for t in arm if (c := variants.curve(t, kind, "validation"))]
        if not test or len(test) != len(validation):
            continue
        shared = sorted(set.intersection(*(set(c) for c in (*test, *validation))))
        points, net = [], {}
        for strength in shared:
            models = [t.spec.trial_id for t in arm]
            if strength not in (0, 1):
                models = [Variant(kind, strength).of(model) for model in models]
            net[strength] = float(np.mean([_net_gain(variants.study, parts, m) for m in models]))
            gain, forgetting = np.mean([curve[strength] for curve in test], axis=0)
            validated_gain, validated_forgetting = np.mean(
                [curve[strength] for curve in validation], axis=0
            )
            points.append(
                ScaledPoint(
                    strength=strength,
                    gain=float(gain),
                    forgetting=float(forgetting),
                    validation_gain=float(validated_gain),
                    validation_forgetting=float(validated_forgetting),
                    seeds=len(test),
                )
            )
        if len(points) < 2:
            continue
        curves.append(
            ScalingCurve(
                label=arm[0].spec.arm_label,
                kind=kind,
                points=tuple(points),
                chosen_strength=max(net, key=lambda s: net[s] if s or kind != "scale" else 0.0),
            )
        )
    return curves


def _comparisons(
    variants: _ScoredVariants, trials: Sequence[TrialRecords]
) -> list[MitigationComparison]:
    """Mitigated arms against their plain arms, and other kinds of scaling against plain scaling."""
    plain = {(_plain_arm(t), t.spec.seed): t for t in trials if not _is_mitigated(t)}
    kinds: tuple[VariantKind, ...] = ("layers", "intruders", "control")
    by_label: list[tuple[str, list[tuple[str, TrialRecords]]]] = []
    for arm in trials_by_arm(trials).values():
        label = arm[0].spec.arm_label
        if _is_mitigated(arm[0]):
            pairs = [
                (t.spec.trial_id, partner)
                for t in arm
                if (partner := plain.get((_plain_arm(t), t.spec.seed)))
            ]
            by_label.append((label, pairs))
            continue
        for kind in kinds:
            for strength in variants.strengths.get((arm[0].spec.trial_id, kind), ()):
                variant = Variant(kind, strength)
                pairs = [(variant.of(t.spec.trial_id), t) for t in arm]
                by_label.append((variant.of(f"{label} ").replace("@", ""), pairs))
    compared = [_comparison(variants, label, pairs) for label, pairs in by_label]
    return [c for c in compared if c is not None]


def _is_mitigated(trial: TrialRecords) -> bool:
    spec = trial.spec
    return bool(spec.mitigations or spec.dropout or spec.weight_decay)


def _plain_arm(trial: TrialRecords) -> tuple[object, ...]:
    settings = ("weight_decay", "replay", "replay_share", "kl_to_base", "early_stop")
    return trial.spec.model_copy(update={"dropout": 0.0, **dict.fromkeys(settings)}).arm


@dataclass(frozen=True, slots=True)
class _Crossing:
    """Where a curve reaches a gain: ``share`` of the way from one of its points to another."""

    first: int
    second: int
    share: float
    slope: float  # Forgetting per gain there; 0 at the ends of the curve
    forgetting: float


def crossing_at(curve: Sequence[GainAndForgetting], gain: float) -> _Crossing:
    """Where a piecewise linear curve reaches ``gain`` with the least forgetting.

    A gain outside the curve is moved to its nearest end.
    """
    gains = [g for g, _ in curve]
    gain = min(max(gain, min(gains)), max(gains))
    reached = [_Crossing(i, i, 0.0, 0.0, f) for i, (g, f) in enumerate(curve) if g == gain]
    for i, ((g0, f0), (g1, f1)) in enumerate(pairwise(curve)):
        if min(g0, g1) <= gain <= max(g0, g1) and g0 != g1:
            share, slope = (gain - g0) / (g1 - g0), (f1 - f0) / (g1 - g0)
            reached.append(_Crossing(i, i + 1, share, slope, f0 + (f1 - f0) * share))
    return min(reached, key=lambda c: c.forgetting)


@dataclass(frozen=True, slots=True)
class _Match:
    """One seed: the model, and the two models whose scores are mixed for the baseline."""

    model: str
    first: str
    second: str
    crossing: _Crossing
    difference: float  # Forgetting of the model minus that of the mixture


def _comparison(
    variants: _ScoredVariants, label: str, pairs: Sequence[tuple[str, TrialRecords]]
) -> MitigationComparison | None:
    """Compare (model, plain trial) of every seed; None without scaling curves of the plain
    trials."""
    study, task = variants.study, pairs[0][1].spec.task if pairs else ""
    points, matches, beyond = [], [], 0
    for model, trial in pairs:
        curve = variants.curve(trial, "scale", "test")
        point = gain_and_forgetting(study, task, model, "test")
        if curve is None or point is None:
            continue
        trial_id, rising = trial.spec.trial_id, sorted(curve)
        scaled = {s: Variant("scale", s).of(trial_id) for s in rising if s not in (0, 1)}
        names = {0.0: BASE, **scaled, 1.0: trial_id}
        crossing = crossing_at([curve[s] for s in rising], point[0])
        first, second = names[rising[crossing.first]], names[rising[crossing.second]]
        matches.append(_Match(model, first, second, crossing, point[1] - crossing.forgetting))
        points.append(point)
        beyond += point[0] > max(gain for gain, _ in curve.values())
    if not points:
        return None
    gain, forgetting = np.mean(points, axis=0)
    return MitigationComparison(
        label=label,
        plain=pairs[0][1].spec.arm_label,
        gain=float(gain),
        forgetting=float(forgetting),
        baseline=float(np.mean([m.crossing.forgetting for m in matches])),
        difference=_difference_over_seeds(study, task, matches),
        beyond=beyond,
    )


def _difference_over_seeds(study: StudyRecords, task: str, matches: Sequence[_Match]) -> Estimate:
    """Mean difference over seeds and retention tasks on the test split.

    Interval and p are None with fewer than ``FEWEST_SEEDS`` seeds, or if neither seeds nor items
    vary.
    """
    retained = [t.name for t in retention_tasks(study, task)]
    parts = [_task_difference(study, name, matches) for name in retained]
    parts.append(_task_difference(study, task, matches, [m.crossing.slope for m in matches]))
    known = [part for part in parts if part is not None]
    if len(matches) >= FEWEST_SEEDS and len(known) == len(parts):
        estimate = weighted_estimate(known, [*(1 / len(retained) for _ in retained), 1.0])
        if estimate.low is not None:
            return estimate
    return Estimate(
        value=float(np.mean([m.difference for m in matches])),
        low=None,
        high=None,
        n=sum(part.tuned.shape[1] for part in known),
        seeds=len(matches),
    )


def _task_difference(
    study: StudyRecords, task: str, matches: Sequence[_Match], slopes: Sequence[float] | None = None
) -> Comparison | None:
    """Mixture minus model, (seeds, items). With ``slopes``: times the slope, centered per seed."""
    names = [m.model for m in matches] + [m.first for m in matches] + [m.second for m in matches]
    scores = [s for name in names if (s := study.items.get((name, task, "test"))) is not None]
    aligned = align_scores(scores, None, trained=False) if len(scores) == len(names) else None
    if aligned is None:
        return None
    model, first, second = np.split(aligned.tuned, 3)
    share: npt.NDArray[np.float64] = np.array([[m.crossing.share] for m in matches])
    rows = (1 - share) * first + share * second - model
    if slopes is not None:
        # ``share`` was chosen to make this mean zero; what remains is its error.
        rows = np.array(slopes)[:, None] * (rows - rows.mean(axis=1, keepdims=True))
    return Comparison(rows, np.zeros(rows.shape[1]), aligned.clusters)
