"""How training went and what it cost: loss curves, parameters, time, memory."""

import numpy as np
import plotly.graph_objects as go

from rankscope.formatting import count, duration, number
from rankscope.records import ArmSummary, TrialRecords
from rankscope.report.charts.figure import Column, Figure, axis, layout, name, table
from rankscope.report.charts.rank_lines import (
    Panel,
    Point,
    against,
    bands_note,
    full_line,
    over_seeds,
    rank_plot,
)
from rankscope.report.study_view import StudyView

MAX_LOSS_POINTS = 80


def binned_losses(
    trials: list[TrialRecords], points: int = MAX_LOSS_POINTS
) -> list[tuple[float, float]]:
    """An arm's loss curve: (mean step, mean loss) over its seeds in at most ``points`` bins."""
    pairs = [(p.step, p.loss) for t in trials if t.train for p in t.train.losses]
    finite = np.array([pair for pair in pairs if np.isfinite(pair[1])], dtype=float)
    if len(finite) == 0:
        return []
    step, loss = finite[:, 0], finite[:, 1]
    bins = min(points, len(np.unique(step)))
    edges = np.linspace(step.min(), step.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, step, side="right") - 1, 0, bins - 1)
    curve = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            curve.append((float(step[inside].mean()), float(loss[inside].mean())))
    return curve


def draw_losses(view: StudyView, task: str) -> Figure:
    """Training loss over steps for the arms of the recommended learning rate and full."""
    curves = [
        (arm, curve) for arm in view.focus_arms(task) if (curve := binned_losses(view.trials(arm)))
    ]
    key, title = f"loss-{view.training_tasks.index(task)}", f"Training loss, {task}"
    columns = [Column("arm"), Column("step", 1), Column("loss, nats per label token", 4)]
    rows = [(arm.label, *point) for arm, curve in curves for point in curve]
    if not curves:
        return Figure(key, title, "No trial has a training record yet.", table(columns, rows))
    figure = go.Figure(layout=layout(360, margin={"l": 56, "r": 64, "t": 20, "b": 52}))
    for arm, curve in curves:
        color = view.color(arm).light
        x, y = zip(*curve, strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": color, "width": 2, "dash": "dash" if arm.is_full else "solid"},
            hoverinfo="text",
            hovertext=[
                f"<b>{name(arm.label)}</b><br>step {at:.0f}: {number(v)}" for at, v in curve
            ],
        )
    _label_ends(figure, view, curves)
    figure.update_xaxes(axis("optimizer step", zeroline=False))
    figure.update_yaxes(axis("loss, nats per token", rangemode="tozero"))
    ends = [(arm, curve[-1][1]) for arm, curve in curves]
    low, high = (pick(ends, key=lambda pair: pair[1]) for pick in (min, max))
    text = (
        f"Loss at the end: lowest {number(low[1])} ({low[0].label})"
        + (f", highest {number(high[1])} ({high[0].label})" if low[0] is not high[0] else "")
        + "."
    )
    diverged = sum(t.status == "diverged" and t.spec.task == task for t in view.study.trials)
    if diverged:
        text += f" {count(diverged, 'trial')} of this task diverged (listed below)."
    how = f"Mean over seeds, in at most {MAX_LOSS_POINTS} bins of steps. A low loss in training is "
    how += "not yet a result."
    return Figure(key, title, text, table(columns, rows), figure, how)


def _label_ends(
    figure: go.Figure, view: StudyView, curves: list[tuple[ArmSummary, list[tuple[float, float]]]]
) -> None:
    """Name each curve at its end, the names pushed apart where the curves meet."""
    top = max(loss for _, curve in curves for _, loss in curve)
    gap = top * 15 / 288  # a line of text over the plot's height, pixels
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


def draw_cost(view: StudyView, task: str) -> Figure:
    """Trainable parameters, seconds and peak memory against rank."""

    def parameters(arm: ArmSummary) -> Point | None:
        return Point(float(arm.trainable_parameters), None, None)

    def seconds(arm: ArmSummary) -> Point | None:
        return over_seeds(view.trials(arm), lambda t: t.train.seconds if t.train else None)

    def memory(arm: ArmSummary) -> Point | None:
        return over_seeds(
            view.trials(arm), lambda t: t.train.peak_memory_bytes / 2**30 if t.train else None
        )

    measures = [
        ("trainable parameters", parameters, True),
        ("training time of one trial, s", seconds, False),
        ("peak memory while its group trained, GiB", memory, False),
    ]
    panels = [
        Panel(text, value, lines=tuple(full_line(view, task, value)), log=log, from_zero=not log)
        for text, value, log in measures
    ]
    rows = [
        (
            arm.label,
            arm.trainable_parameters,
            *(v.value if v else None for v in (seconds(arm), memory(arm))),
        )
        for arm in view.arms(task)
    ]
    return Figure(
        key=f"cost-{view.training_tasks.index(task)}",
        title=f"Cost {against(view, task)}, {task}",
        finding=_cost_finding(view, task),
        table=table([Column("arm"), *(Column(text) for text, _, _ in measures)], rows),
        plot=rank_plot(view, task, panels),
        how_to_read=f"{bands_note(view, task, 'the range over seeds')} A trial's time is its share "
        "of its group's, by tokens; memory is the whole process's, so trials of one group share it.",
    )


def _cost_finding(view: StudyView, task: str) -> str:
    arm, full = view.focus(task), view.best_full(task)
    if arm is None:
        return "No arm has finished, so there is no cost to show."
    text = f"{arm.label} trains {number(arm.trainable_parameters)} parameters"
    if arm.seconds is not None:
        text += f" in {duration(arm.seconds)} per trial"
    if full and full is not arm and full.trainable_parameters:
        share = 100 * arm.trainable_parameters / full.trainable_parameters
        text += f", {number(share)} % of full fine-tuning's {number(full.trainable_parameters)}"
        if full.seconds is not None:
            text += f", which takes {duration(full.seconds)}"
    return text + "."
