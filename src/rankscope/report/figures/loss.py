"""Training loss by step."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rankscope.formatting import count
from rankscope.records import ArmSummary, TrialRecords
from rankscope.report.charts.figure import Figure, axis, hover_texts, layout
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

MAX_POINTS = 80  # Bins of a loss curve
LOSS = "loss, nats per label token"


@register("training", 10)
def draw_loss(view: StudyView, task: str) -> Figure:
    """The arms of the focus line and full fine-tuning, named at their ends."""
    curves = [(arm, c) for arm in view.focus_arms(task) if (c := binned_losses(view.trials(arm)))]
    rows = [
        {"arm": arm.label, "step": at, LOSS: loss} for arm, curve in curves for at, loss in curve
    ]
    frame = table_from_rows(rows, {"step": 1, LOSS: 4})
    key, title = view.key("loss", task), f"Training loss, {task}"
    if not curves:
        return Figure(key, title, "No trial has a training record yet.", frame)
    figure = go.Figure(layout=layout(360, margin={"l": 56, "r": 64, "t": 20, "b": 52}))
    # Names are pushed apart if curves meet: a line of text over the height of the plot, in pixels.
    gap = frame[LOSS].max() * 15 / 288
    height = -gap
    for arm, curve in sorted(curves, key=lambda pair: pair[1][-1][1]):
        color, points = view.color(arm).light, frame[frame["arm"] == arm.label]
        figure.add_scatter(
            x=list(points["step"]),
            y=list(points[LOSS]),
            mode="lines",
            line={"color": color, "width": 2, "dash": "dash" if arm.is_full else "solid"},
            hoverinfo="text",
            hovertext=hover_texts(points, "arm", {"step": "step", "loss": LOSS}),
        )
        height = max(height + gap, curve[-1][1])
        font = {"size": 12, "color": color}
        at = {"x": curve[-1][0], "y": height, "xanchor": "left", "xshift": 6}
        figure.add_annotation(text=arm.short_label, font=font, showarrow=False, **at)
    figure.update_xaxes(axis("optimizer step", zeroline=False))
    figure.update_yaxes(axis("loss, nats per token", rangemode="tozero"))
    caption = (
        "Drawn: the ranks at one learning rate and the best full fine-tuning. Mean over seeds, in "
        f"at most {MAX_POINTS} bins of steps. A low loss is no result yet."
    )
    return Figure(key, title, _finding(view, task, curves), frame, figure, caption)


def _finding(
    view: StudyView, task: str, curves: Sequence[tuple[ArmSummary, list[tuple[float, float]]]]
) -> str:
    ends = [(curve[-1][1], arm.label) for arm, curve in curves]
    (low, lowest), (high, highest) = min(ends), max(ends)
    text = f"Loss at the end of the arms drawn: {low:#.3g} ({lowest})"
    text += f" to {high:#.3g} ({highest})." if len(ends) > 1 else "."
    diverged = sum(t.status == "diverged" and t.spec.task == task for t in view.study.trials)
    return text + (f" {count(diverged, 'trial')} of this task diverged." if diverged else "")


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
