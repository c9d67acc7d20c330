"""Learning and retention by step: what each arm had learned and lost as it trained.

Biderman et al. (arXiv 2405.09673) draw it over training tokens; here it is drawn over optimizer
steps, on the first items of the validation split.
"""

from collections.abc import Sequence

from rankscope.formatting import count, difference
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.figures import register
from rankscope.report.learning_curves import CurveStep, curve_of
from rankscope.report.study_view import StudyView, retention_text
from rankscope.report.table_formats import table_from_rows

SMALLEST, LARGEST = 5.0, 11.0  # Size of the first and the last marker of a line, pixels
STEP = "optimizer step"
_CAPTION = """One line per arm, the mean over its seeds, from the untuned base on. Each marker is \
a moment of training, larger the later it is. Right is learned more, up is retained more; without \
a retention task, the gain is drawn against the step. Scores are of the first items of the \
validation split, by which rungs and early stopping decide; quote the other figures, which use all \
items."""


@register("planes", 20)
def draw_learning_curve(view: StudyView, task: str) -> Figure | None:
    """The curves of one training task; None if no trial was scored while it trained."""
    curves = [(arm, curve) for arm in view.arms(task) if (curve := curve_of(view, arm))]
    if not curves:
        return None
    unit, kept = view.unit(task), view.retention_unit(task)
    gain, retained = view.plane_titles(task, kept)
    rows = [
        {
            "arm": arm.label,
            STEP: step.step,
            gain: step.gain * unit.scale,
            retained: None if step.retention is None else step.retention * kept.scale,
            "seeds": step.seeds,
            "items": step.items,
        }
        for arm, curve in curves
        for step in curve
    ]
    frame = table_from_rows(rows, view.plane_digits(task, kept))
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


def _finding(view: StudyView, curves: Sequence[tuple[ArmSummary, list[CurveStep]]]) -> str:
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
    return f" {count(without, 'trial')} of {len(trials)} {verb} no curve." if without else ""
