"""Curves of a training value by step, one line for each drawn arm."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from rankscope.records import ArmSummary, TrainRecord
from rankscope.report.charts.figure import Figure, axis, hover_texts, layout
from rankscope.report.columns import Column
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table

MAX_POINTS = 80  # Bins of a curve

Points = Callable[[TrainRecord], Iterable[tuple[float, float]]]
"""Function that returns (step, value) pairs of one trial's training."""


def draw_curves(
    view: StudyView, task: str, names: tuple[str, str, str], points_of: Points
) -> Figure | None:
    """Draw a training value by step, the mean over the seeds of each arm; None without any.

    ``names`` are the figure's key, its title, and the value with its unit.
    """
    key, title, value = names
    curves = [
        (arm, curve)
        for arm in view.focus_arms(task)
        if (
            curve := _binned([xy for t in view.trials(arm) if t.train for xy in points_of(t.train)])
        )
    ]
    if not curves:
        return None
    rows = [{"arm": arm.label, "step": at, value: y} for arm, curve in curves for at, y in curve]
    frame = table(rows, {"step": Column(digits=1), value: Column(digits=4)})
    figure = go.Figure(layout=layout(360, margin={"l": 56, "r": 64, "t": 20, "b": 52}))
    # Names are pushed apart if curves meet; a name needs a line of text, in pixels.
    gap = frame[value].max() * 15 / 288
    height = -gap
    for arm, curve in sorted(curves, key=lambda pair: pair[1][-1][1]):
        color, points = view.color(arm).light, frame[frame["arm"] == arm.label]
        figure.add_scatter(
            x=list(points["step"]),
            y=list(points[value]),
            mode="lines",
            line={"color": color, "width": 2, "dash": "dash" if arm.is_full else "solid"},
            hoverinfo="text",
            hovertext=hover_texts(points, "arm", {"step": "step", value: value}),
        )
        height = max(height + gap, curve[-1][1])
        font = {"size": 12, "color": color}
        at = {"x": curve[-1][0], "y": height, "xanchor": "left", "xshift": 6}
        figure.add_annotation(text=arm.short_label, font=font, showarrow=False, **at)
    figure.update_xaxes(axis("optimizer step", zeroline=False))
    figure.update_yaxes(axis(value.replace("label token", "token"), rangemode="tozero"))
    caption = (
        "Drawn: the ranks at one learning rate and the best full fine-tuning. Mean over seeds, in "
        f"at most {MAX_POINTS} bins of steps."
    )
    return Figure(view.key(key, task), title, _finding(curves), frame, figure, caption)


def _finding(curves: Sequence[tuple[ArmSummary, list[tuple[float, float]]]]) -> str:
    ends = [(curve[-1][1], arm.label) for arm, curve in curves]
    (low, lowest), (high, highest) = min(ends), max(ends)
    text = f"at the end of training: {low:#.3g} ({lowest})"
    return text + (f" to {high:#.3g} ({highest})." if len(ends) > 1 else ".")


def _binned(
    points: Sequence[tuple[float, float]], most: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """Return (mean step, mean value) of all finite values, in at most ``most`` bins of steps."""
    finite = np.array([pair for pair in points if np.isfinite(pair[1])], dtype=float)
    if len(finite) == 0:
        return []
    step = finite[:, 0]
    bins = min(most, len(np.unique(step)))
    edges = np.linspace(step.min(), step.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, bins - 1)
    means = [finite[place == b].mean(axis=0) for b in range(bins) if (place == b).any()]
    return [(float(at), float(value)) for at, value in means]
