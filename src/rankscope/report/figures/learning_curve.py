"""Learning and retention by step: each arm's gains and losses as it trained.

Biderman et al. (arXiv 2405.09673) draw it over training tokens. Here it is drawn over optimizer
steps, on the first items of the validation split.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rankscope.formatting import count, difference
from rankscope.records import BASE, ArmSummary, CurvePoint, TrialRecords
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView, retention_text
from rankscope.report.table_formats import shown, table

SMALLEST, LARGEST = 5.0, 11.0  # Size of the first and the last marker of a line, pixels
STEP = "optimizer step"
_CAPTION = """One line per configuration, the mean over its seeds, from the untuned base on. Each \
marker is a moment of training, larger the later it is. Right is learned more, up is retained \
more; without a retention task, the gain is drawn against the step. Scores are of the first items \
of the validation split, by which early stopping decides; quote the other figures, which use all \
items."""


@dataclass(frozen=True, slots=True)
class _CurveStep:
    """An arm after some steps, the mean over its seeds; shares of 1 or nats."""

    step: int
    gain: float  # In-domain: tuned minus base, on the same items
    retention: float | None  # Tuned minus base, mean over retention tasks; None without one
    seeds: int
    items: int  # Number of in-domain items


@in_section("planes", 20)
def draw_learning_curve(view: StudyView, task: str) -> Figure | None:
    """Draw the curves of one training task; None if no trial was scored while it trained."""
    curves = [(arm, curve) for arm in view.arms(task) if (curve := _curve_of(view, arm))]
    if not curves:
        return None
    kept = view.retention_unit(task)
    gain, retained = view.plane_titles(task, kept)
    rows = [
        {
            "arm": arm.label,
            STEP: step.step,
            gain: step.gain,
            retained: step.retention,
            "seeds": step.seeds,
            "items": step.items,
        }
        for arm, curve in curves
        for step in curve
    ]
    frame = shown(table(rows, view.plane_columns(task, kept)))
    is_plane = bool(frame[retained].notna().all())
    words = {"step": STEP, "gain": gain, "retention": retained, "seeds": "seeds", "items": "items"}
    paths, names = {}, view.point_names(task)
    for arm, curve in curves:
        points, last = frame[frame["arm"] == arm.label], max(1, len(curve) - 1)
        sizes = [LARGEST - (LARGEST - SMALLEST) * (last - i) / last for i in range(len(curve))]
        sizes[-1] = LARGEST
        color, style, name = view.color(arm).light, view.arm_style(arm), names[arm.label]
        paths[arm.label] = [Path(points, words, [color], style, "", sizes, name)]
    focus = [arm.label for arm in view.focus_arms(task)]
    axes = (gain, retained) if is_plane else (STEP, gain)
    drawn = paths_from_base(paths, focus, *axes)
    key, title = view.key("curve", task), f"Learning and retention by step, {task}"
    return Figure(key, title, _finding(view, curves), frame, caption=_CAPTION, **drawn)


def _finding(view: StudyView, curves: Sequence[tuple[ArmSummary, list[_CurveStep]]]) -> str:
    task = curves[0][0].task
    focus = view.focus(task)
    of_focus = (pair for pair in curves if focus is not None and pair[0].label == focus.label)
    arm, curve = next(of_focus, curves[0])
    most = max(step.gain for step in curve)
    half = next(step for step in curve if step.gain >= min(most, most / 2))  # it may be a loss
    parts = []
    for step in dict.fromkeys([half, curve[-1]]):
        text = f"after {count(step.step, 'step')} {difference(step.gain, view.unit(task))}"
        if step.retention is not None:
            text += f", {retention_text(step.retention, view.retention_unit(task))}"
        parts.append(text)
    return f"{arm.label}: {'; '.join(parts)}.{_missing(view, task)}"


def _missing(view: StudyView, task: str) -> str:
    trials = [trial for arm in view.arms(task) for trial in view.trials(arm)]
    without = sum(not trial.curve for trial in trials)
    verb = "has" if without == 1 else "have"
    return f" {count(without, 'run')} of {len(trials)} {verb} no curve." if without else ""


# --- curves ------------------------------------------------------------------------------------


def _curve_of(view: StudyView, arm: ArmSummary) -> list[_CurveStep]:
    """Return the curve of an arm by rising step; a trial counts at the steps with all its scores.

    A trial that stopped early counts up to the step whose weights were kept. At later steps its
    last score until then is used, as long as other seeds trained.
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


def _mean_over_seeds(step: int, seeds: list[_CurveStep]) -> _CurveStep:
    kept = [seed.retention for seed in seeds if seed.retention is not None]
    return _CurveStep(
        step=step,
        gain=fmean(seed.gain for seed in seeds),
        retention=fmean(kept) if kept else None,
        seeds=len(seeds),
        items=min(seed.items for seed in seeds),
    )


def _trial_curve(view: StudyView, trial: TrialRecords) -> dict[int, _CurveStep]:
    """Return the curve of one trial by step, up to the weights that were kept."""
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
            curve[step] = _CurveStep(step, gain, mean, 1, learned.n)
    return curve


def _change(view: StudyView, point: CurvePoint) -> float | None:
    """Return tuned minus base on the items of a point; None if the base was not scored on them."""
    base = view.study.items.get((BASE, point.task, "validation"))
    if base is None or len(base.scores) < point.n:
        return None
    return point.score - float(base.scores[: point.n].mean())


def _retention(view: StudyView, task: str, points: dict[str, CurvePoint]) -> list[float] | None:
    """Return tuned minus base on the retention tasks; None if one is missing."""
    retained = view.retained(task)
    changes = [_change(view, points[name]) if name in points else None for name in retained]
    return None if None in changes else [change for change in changes if change is not None]
