"""What happened to each arm by step: its training loss, and its scores while it trained."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rankscope.records import BASE, ArmSummary, CurvePoint, TrialRecords
from rankscope.report.study_view import StudyView

MAX_POINTS = 80  # Bins of a loss curve


@dataclass(frozen=True, slots=True)
class CurveStep:
    """An arm after some steps, the mean over its seeds; shares of 1 or nats."""

    step: int
    gain: float  # In-domain: tuned minus base, on the same items
    retention: float | None  # Tuned minus base, mean over retention tasks; None without one
    seeds: int
    items: int  # Of the in-domain task


def curve_of(view: StudyView, arm: ArmSummary) -> list[CurveStep]:
    """The curve of an arm by rising step; a trial counts at the steps with all its scores.

    A trial that stopped early counts up to the step whose weights were kept. At later steps, for as
    long as other seeds trained, its last score up to there is used.
    """
    trials = [(_trial_curve(view, trial), trial.train) for trial in view.trials(arm)]
    steps = []
    for step in sorted({step for curve, _ in trials for step in curve}):
        seeds = []
        for curve, train in trials:
            has_ended = train is not None and train.best_step is not None and step > train.best_step
            seeds.append(curve.get(max(curve, default=step) if has_ended else step))
        steps.append(_mean_over_seeds(step, [seed for seed in seeds if seed is not None]))
    return steps


def _mean_over_seeds(step: int, seeds: list[CurveStep]) -> CurveStep:
    kept = [seed.retention for seed in seeds if seed.retention is not None]
    return CurveStep(
        step=step,
        gain=fmean(seed.gain for seed in seeds),
        retention=fmean(kept) if kept else None,
        seeds=len(seeds),
        items=min(seed.items for seed in seeds),
    )


def _trial_curve(view: StudyView, trial: TrialRecords) -> dict[int, CurveStep]:
    """One trial by step, up to the weights that were kept."""
    by_step: dict[int, dict[str, CurvePoint]] = defaultdict(dict)
    for point in trial.curve:
        by_step[point.step][point.task] = point
    kept = None if trial.train is None else trial.train.best_step
    task, curve = trial.spec.task, {}
    for step, points in by_step.items():
        learned = points.get(task)
        if learned is None or (kept is not None and step > kept):
            continue
        gain, changes = _change(view, learned), _retention(view, task, points)
        if gain is not None and changes is not None:
            mean = fmean(changes) if changes else None
            curve[step] = CurveStep(step, gain, mean, 1, learned.n)
    return curve


def _change(view: StudyView, point: CurvePoint) -> float | None:
    """Tuned minus base on the items of a point; None if the base was not scored on them."""
    base = view.study.items.get((BASE, point.task, "validation"))
    if base is None or len(base.scores) < point.n:
        return None
    return point.score - float(base.scores[: point.n].mean())


def _retention(view: StudyView, task: str, points: dict[str, CurvePoint]) -> list[float] | None:
    """Tuned minus base on the retention tasks of the averaged unit; None if one is missing."""
    unit = view.retention_unit(task)
    retained = [name for name in view.retained(task) if view.unit(name) == unit]
    changes = [_change(view, points[name]) if name in points else None for name in retained]
    return None if None in changes else [change for change in changes if change is not None]


def binned_losses(
    trials: list[TrialRecords], points: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """(mean step, mean loss) over the seeds of an arm, in at most ``points`` bins."""
    pairs = [(p.step, p.loss) for t in trials if t.train for p in t.train.losses]
    finite = np.array([pair for pair in pairs if np.isfinite(pair[1])], dtype=float)
    if len(finite) == 0:
        return []
    step = finite[:, 0]
    bins = min(points, len(np.unique(step)))
    edges = np.linspace(step.min(), step.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, bins - 1)
    means = [finite[place == b].mean(axis=0) for b in range(bins) if (place == b).any()]
    return [(float(at), float(loss)) for at, loss in means]
