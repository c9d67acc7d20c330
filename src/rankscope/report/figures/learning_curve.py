"""Learning and forgetting by step: what each arm had learned and forgotten as it trained.

Biderman et al. (arXiv 2405.09673) draw it over training tokens; here it is drawn over optimizer
steps, on the first items of the validation split.
"""

import pandas as pd

from rankscope.formatting import count, difference
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure, tidy
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.figures import register
from rankscope.report.learning_curves import CurveStep, curve_of
from rankscope.report.study_view import StudyView, forgetting_text

SMALLEST, LARGEST = 5.0, 11.0
"""Size of the first and the last marker of a line, pixels."""


@register("planes", 20)
def draw(view: StudyView, task: str) -> Figure | None:
    """The curves of one training task; None if no trial was scored while it trained."""
    drawn = [(arm, curve_of(view, arm)) for arm in view.arms(task)]
    curves = [(arm, curve) for arm, curve in drawn if curve]
    if not curves:
        return None
    unit, lost = view.unit(task), view.forgetting_unit(task)
    gain, forgetting = f"gain over base, {unit.difference}", f"forgetting, {lost.difference}"
    steps = [(arm.label, step) for arm, curve in curves for step in curve]
    frame = tidy(
        {
            "arm": [arm for arm, _ in steps],
            "optimizer step": [step.step for _, step in steps],
            gain: [step.gain * unit.scale for _, step in steps],
            forgetting: [
                None if s.forgetting is None else s.forgetting * lost.scale for _, s in steps
            ],
            "seeds": [step.seeds for _, step in steps],
            "items": [step.items for _, step in steps],
        },
        {
            "optimizer step": 0,
            gain: unit.digits + 1,
            forgetting: lost.digits + 1,
            "seeds": 0,
            "items": 0,
        },
    )
    is_plane = all(value is not None for value in frame[forgetting])
    x, y = (gain, forgetting) if is_plane else ("optimizer step", gain)
    paths = {
        arm.label: [path(view, arm, frame[frame["arm"] == arm.label], gain, forgetting)]
        for arm, _ in curves
    }
    focus = [arm.label for arm in view.focus_arms(task)]
    plot, choices = paths_from_base(paths, focus, x, y, reversed_y=is_plane)
    caption = (
        "One line per arm, the mean over its seeds, from the untuned base on. Each marker is a "
    )
    caption += "moment of training, larger the later it is. "
    caption += (
        "Right is learned more, up is forgot less. "
        if is_plane
        else "Without a retention task, the gain is drawn against the step. "
    )
    caption += "Scores are of the first items of the validation split and chose nothing; quote the "
    caption += "other figures, which use all items."
    key, title = view.key("curve", task), f"Learning and forgetting by step, {task}"
    return Figure(
        key, title, finding(view, curves), frame, plot, caption, choices if len(choices) > 1 else ()
    )


def path(view: StudyView, arm: ArmSummary, frame: pd.DataFrame, gain: str, forgetting: str) -> Path:
    """The line of one arm."""
    dash, symbol = view.arm_style(arm)
    growth = (LARGEST - SMALLEST) / max(1, len(frame) - 1)
    sizes = [SMALLEST + growth * i for i in range(len(frame) - 1)] + [LARGEST]
    words = {
        "step": "optimizer step",
        "gain": gain,
        "forgetting": forgetting,
        "seeds": "seeds",
        "items": "items",
    }
    name = arm.short_label
    return Path(frame, (view.color(arm).light,), symbol, dash, "", tuple(sizes), True, name, words)


def finding(view: StudyView, curves: list[tuple[ArmSummary, list[CurveStep]]]) -> str:
    """When the focus arm had half its gain, and where it ended; trials without a curve."""
    focus = view.focus(curves[0][0].task)
    of_focus = (pair for pair in curves if focus is not None and pair[0].label == focus.label)
    arm, curve = next(of_focus, curves[0])
    half = next(s for s in curve if s.gain >= max(t.gain for t in curve) / 2)
    shown = dict.fromkeys([half, curve[-1]])
    text = f"{arm.label}: {'; '.join(step_text(view, arm.task, step) for step in shown)}."
    trials = [trial for other in view.arms(arm.task) for trial in view.trials(other)]
    without = sum(not trial.curve for trial in trials)
    if without:
        text += (
            f" {count(without, 'trial')} of {len(trials)} {'has' if without == 1 else 'have'} no "
            "curve: trained before curves were enabled, or failed before the first point."
        )
    return text


def step_text(view: StudyView, task: str, step: CurveStep) -> str:
    """An arm after some steps, in words."""
    text = f"after {count(step.step, 'step')} {difference(step.gain, view.unit(task))}"
    if step.forgetting is None:
        return text
    return f"{text}, {forgetting_text(step.forgetting, view.forgetting_unit(task))}"
