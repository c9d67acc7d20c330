"""Mitigations of forgetting, compared at an equal in-domain score.

Scaling a trained update down, W0 + f (W - W0), needs no training and forgets less as f goes to 0,
the base. A mitigation therefore has to forget less than the plain arm scaled to the *same* gain.
Gain and forgetting are interpolated linearly between strengths; if a curve reaches a gain more than
once, its least forgetting counts. If a mitigated seed gains more than the plain arm at any
strength, it is compared with the plain arm at its largest gain, which favours the plain arm;
dropping the seed would select by the result. Differences have intervals and tests over seeds and
items (``matched_score.py``), and all comparisons of a training task form one Holm family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from rankscope.advise.arms import adjusted_within_family, retention_tasks, trials_by_arm
from rankscope.advise.matched_score import (
    GainAndForgetting,
    Match,
    difference_over_seeds,
    passage_at,
)
from rankscope.advise.select import task_objective
from rankscope.records import (
    BASE,
    MitigationComparison,
    ScaledPoint,
    ScalingCurve,
    Split,
    StudyRecords,
    TaskMitigation,
    TrialRecords,
    Variant,
    VariantKind,
    trial_of,
    variant_of,
)


def compare_mitigations(study: StudyRecords) -> tuple[TaskMitigation, ...]:
    """Scaling curves of every arm and comparisons with mitigations, by training task.

    Empty if the study scored no scaled variant or has no retention task.
    """
    scored = Scored.of(study)
    if not scored.strengths:
        return ()
    tasks = []
    for task in dict.fromkeys(trial.spec.task for trial in study.trials):
        trials = [t for t in study.trials if t.spec.task == task and t.status == "done"]
        curves = [c for arm in trials_by_arm(trials).values() for c in _curves(scored, arm)]
        if curves:
            comparisons = _holm_adjusted(_comparisons(scored, trials))
            tasks.append(TaskMitigation(task=task, curves=tuple(curves), comparisons=comparisons))
    return tuple(tasks)


def gain_and_forgetting(
    study: StudyRecords, task: str, model: str, split: Split
) -> GainAndForgetting | None:
    """Gain on ``task`` and mean forgetting on the retention tasks; None if a score is missing."""
    gain = _change(study, model, task, split)
    falls = [_change(study, model, t.name, split) for t in retention_tasks(study, task)]
    known = [-fall for fall in falls if fall is not None]
    if gain is None or not known or len(known) < len(falls):
        return None
    return gain, float(np.mean(known))


def _change(study: StudyRecords, model: str, task: str, split: Split) -> float | None:
    """Mean score minus the base's on their common items; None without any."""
    base, tuned = (study.items.get((m, task, split)) for m in (BASE, model))
    if base is None or tuned is None:
        return None
    if base.item_ids == tuned.item_ids:
        differences = tuned.scores - base.scores
    else:
        scores = dict(zip(base.item_ids, base.scores.tolist(), strict=True))
        pairs = zip(tuned.item_ids, tuned.scores.tolist(), strict=True)
        differences = np.array([score - scores[i] for i, score in pairs if i in scores])
    differences = differences[np.isfinite(differences)]
    return float(differences.mean()) if differences.size else None


@dataclass(frozen=True, slots=True)
class Scored:
    """A study with the strengths at which its trials were scored as variants."""

    study: StudyRecords
    strengths: Mapping[tuple[str, VariantKind], tuple[float, ...]]
    """(trial id, kind) -> strengths in ascending order, without 0 and 1."""

    @classmethod
    def of(cls, study: StudyRecords) -> "Scored":
        found: dict[tuple[str, VariantKind], set[float]] = {}
        for model, _, _ in study.evals:
            variant = variant_of(model)
            if variant is not None:
                found.setdefault((trial_of(model), variant.kind), set()).add(variant.strength)
        return cls(study, {key: tuple(sorted(values)) for key, values in found.items()})

    def of_trial(self, trial: TrialRecords, kind: VariantKind) -> tuple[float, ...]:
        return self.strengths.get((trial.spec.trial_id, kind), ())


def scaling_spots(
    scored: Scored, trial: TrialRecords, kind: VariantKind, split: Split
) -> dict[float, GainAndForgetting] | None:
    """A trial's scaling curve by strength, including the trial itself; None without variants.

    Only the curve of kind ``scale`` includes the base: the other kinds leave a part of the update
    unchanged at strength 0.
    """
    task, trial_id = trial.spec.task, trial.spec.trial_id
    models = {s: Variant(kind, s).of(trial_id) for s in scored.of_trial(trial, kind)}
    if not models:
        return None
    spots = {
        s: gain_and_forgetting(scored.study, task, model, split)
        for s, model in (models | {1.0: trial_id}).items()
    }
    known = {s: found for s, found in spots.items() if found is not None}
    if len(known) < 2:
        return None
    return {0.0: (0.0, 0.0), **known} if kind == "scale" else known


def _curves(scored: Scored, arm: Sequence[TrialRecords]) -> list[ScalingCurve]:
    objective = task_objective(scored.study, arm[0].spec.task)
    found = []
    for kind in get_args(VariantKind):
        test = [c for t in arm if (c := scaling_spots(scored, t, kind, "test"))]
        validation = [c for t in arm if (c := scaling_spots(scored, t, kind, "validation"))]
        if not test or len(test) != len(validation):
            continue
        shared = sorted(set.intersection(*(set(c) for c in (*test, *validation))))
        points = tuple(_mean_point(s, test, validation) for s in shared)
        if len(points) < 2:
            continue
        best = max(
            points,
            key=lambda p: (
                objective.in_domain * p.validation_gain
                - objective.retention * p.validation_forgetting
            ),
        )
        label = arm[0].spec.arm_label
        found.append(
            ScalingCurve(label=label, kind=kind, points=points, chosen_strength=best.strength)
        )
    return found


def _mean_point(
    strength: float,
    test: Sequence[Mapping[float, GainAndForgetting]],
    validation: Sequence[Mapping[float, GainAndForgetting]],
) -> ScaledPoint:
    gain, forgetting = np.mean([curve[strength] for curve in test], axis=0)
    chosen = np.mean([curve[strength] for curve in validation], axis=0)
    return ScaledPoint(
        strength=strength,
        gain=float(gain),
        forgetting=float(forgetting),
        validation_gain=float(chosen[0]),
        validation_forgetting=float(chosen[1]),
        seeds=len(test),
    )


def _comparisons(scored: Scored, trials: Sequence[TrialRecords]) -> list[MitigationComparison]:
    """Mitigated arms against their plain arms, and other kinds of scaling against plain scaling."""
    plain = {
        (settings_without_mitigation(t), t.spec.seed): t for t in trials if not is_mitigated(t)
    }
    found = []
    kinds: tuple[VariantKind, ...] = ("layers", "intruders", "control")
    for arm in trials_by_arm(trials).values():
        if is_mitigated(arm[0]):
            pairs = [
                (t.spec.trial_id, partner)
                for t in arm
                if (partner := plain.get((settings_without_mitigation(t), t.spec.seed)))
            ]
            found += _compared(scored, arm[0].spec.arm_label, pairs)
            continue
        for kind in kinds:
            for strength in scored.of_trial(arm[0], kind):
                variant = Variant(kind, strength)
                label = variant.of(f"{arm[0].spec.arm_label} ").replace("@", "")
                found += _compared(scored, label, [(variant.of(t.spec.trial_id), t) for t in arm])
    return found


def is_mitigated(trial: TrialRecords) -> bool:
    """Whether a trial was trained with a mitigation of forgetting."""
    spec = trial.spec
    return bool(spec.mitigations or spec.dropout or spec.weight_decay)


def settings_without_mitigation(trial: TrialRecords) -> tuple[object, ...]:
    """The settings that a mitigated trial shares with its plain counterpart."""
    spec = trial.spec
    overrides = {name: v for name, v in spec.overrides.items() if name != "weight_decay"}
    return (
        spec.method,
        spec.peft,
        spec.rank,
        spec.alpha,
        spec.lr,
        spec.lr_ratio,
        spec.targets,
        spec.init_sha256,
        *overrides.items(),
    )


def _compared(
    scored: Scored, label: str, pairs: Sequence[tuple[str, TrialRecords]]
) -> list[MitigationComparison]:
    """One comparison over pairs of (model, plain trial), one per seed; none without scaling curves
    of the plain trials."""
    study, task = scored.study, pairs[0][1].spec.task if pairs else ""
    spots, matches, beyond = [], [], 0
    for model, trial in pairs:
        curve = scaling_spots(scored, trial, "scale", "test")
        found = gain_and_forgetting(study, task, model, "test")
        if curve is not None and found is not None:
            spots.append(found)
            matches.append(_matched(model, trial.spec.trial_id, curve, found))
            beyond += found[0] > max(gain for gain, _ in curve.values())
    if not spots:
        return []
    gain, forgetting = np.mean(spots, axis=0)
    retained = [t.name for t in retention_tasks(study, task)]
    return [
        MitigationComparison(
            label=label,
            plain=pairs[0][1].spec.arm_label,
            gain=float(gain),
            forgetting=float(forgetting),
            baseline=float(np.mean([m.passage.forgetting for m in matches])),
            difference=difference_over_seeds(study, task, retained, matches),
            beyond=beyond,
        )
    ]


def _matched(
    model: str, trial_id: str, curve: Mapping[float, GainAndForgetting], found: GainAndForgetting
) -> Match:
    """The model and the point of the plain trial's curve with the same gain."""
    rising = sorted(curve)
    names = [
        BASE if s == 0 else trial_id if s == 1 else Variant("scale", s).of(trial_id) for s in rising
    ]
    at = passage_at([curve[s] for s in rising], found[0])
    return Match(model, names[at.first], names[at.second], at, found[1] - at.forgetting)


def _holm_adjusted(comparisons: Sequence[MitigationComparison]) -> tuple[MitigationComparison, ...]:
    adjusted = adjusted_within_family([c.difference for c in comparisons])
    pairs = zip(comparisons, adjusted, strict=True)
    return tuple(c.model_copy(update={"difference": difference}) for c, difference in pairs)
