"""Training loss by step."""

import numpy as np
import plotly.graph_objects as go

from rankscope.formatting import count, number
from rankscope.records import ArmSummary, TrialRecords
from rankscope.report.charts.figure import Figure, axis, hover_texts, layout, tidy
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView

MAX_POINTS = 80
LOSS = "loss, nats per label token"
Curve = list[tuple[float, float]]


@register("training", 10)
def draw(view: StudyView, task: str) -> Figure:
    """The arms of the focus line and full fine-tuning."""
    drawn = [(arm, binned_losses(view.trials(arm))) for arm in view.focus_arms(task)]
    curves = [(arm, curve) for arm, curve in drawn if curve]
    points = [(arm.label, *point) for arm, curve in curves for point in curve]
    frame = tidy(
        {title: [p[i] for p in points] for i, title in enumerate(("arm", "step", LOSS))},
        {"step": 1, LOSS: 4},
    )
    key, title = view.key("loss", task), f"Training loss, {task}"
    if not curves:
        return Figure(key, title, "No trial has a training record yet.", frame)
    figure = go.Figure(layout=layout(360, margin={"l": 56, "r": 64, "t": 20, "b": 52}))
    for arm, _ in curves:
        rows = frame[frame["arm"] == arm.label]
        figure.add_scatter(
            x=list(rows["step"]),
            y=list(rows[LOSS]),
            mode="lines",
            line={
                "color": view.color(arm).light,
                "width": 2,
                "dash": "dash" if arm.is_full else "solid",
            },
            hoverinfo="text",
            hovertext=hover_texts(rows, "arm", {"step": "step", "loss": LOSS}),
        )
    label_ends(figure, view, curves)
    figure.update_xaxes(axis("optimizer step", zeroline=False))
    figure.update_yaxes(axis("loss, nats per token", rangemode="tozero"))
    caption = f"Mean over seeds, in at most {MAX_POINTS} bins of steps. A low training loss is not "
    return Figure(key, title, finding(view, task, curves), frame, figure, caption + "yet a result.")


def binned_losses(trials: list[TrialRecords], points: int = MAX_POINTS) -> Curve:
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


def label_ends(figure: go.Figure, view: StudyView, curves: list[tuple[ArmSummary, Curve]]) -> None:
    """Name each curve at its end; names are pushed apart if curves meet."""
    # A line of text over the height of the plot, in pixels.
    gap = max(loss for _, curve in curves for _, loss in curve) * 15 / 288
    height = -gap
    for arm, curve in sorted(curves, key=lambda pair: pair[1][-1][1]):
        height = max(height + gap, curve[-1][1])
        figure.add_annotation(
            x=curve[-1][0],
            y=height,
            text=arm.short_label,
            xanchor="left",
            xshift=6,
            showarrow=False,
            font={"size": 12, "color": view.color(arm).light},
        )


def finding(view: StudyView, task: str, curves: list[tuple[ArmSummary, Curve]]) -> str:
    """The lowest and the highest loss at the end, and diverged trials."""
    ends = [(curve[-1][1], arm.label) for arm, curve in curves]
    (low, lowest), (high, highest) = min(ends), max(ends)
    text = f"Loss at the end: lowest {number(low)} ({lowest})"
    text += f", highest {number(high)} ({highest})." if len(ends) > 1 else "."
    diverged = sum(t.status == "diverged" and t.spec.task == task for t in view.study.trials)
    if diverged:
        text += f" {count(diverged, 'trial')} of this task diverged (listed below)."
    return text
