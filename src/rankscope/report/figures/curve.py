"""The learning-forgetting curve: what each arm had learned and forgotten as it trained.

Biderman et al. (arXiv 2405.09673) draw it over training tokens; here over optimizer steps, on the
first items of the validation split.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rankscope.formatting import count, difference, number
from rankscope.records import BASE as UNTUNED
from rankscope.records import ArmSummary, CurvePoint, TrialRecords
from rankscope.report.charts.figure import (
    Choice,
    Column,
    DataTable,
    Figure,
    axis,
    layout,
    name,
    table,
)
from rankscope.report.charts.labels import Label, add_labels, place
from rankscope.report.study_view import Series, StudyView
from rankscope.report.style import BASE, SURFACE

SMALLEST, LARGEST = 5.0, 11.0
"""Size of the first and the last marker of a line, pixels."""


Spot = tuple[float, float | None, int]
"""Gain, forgetting and items of one trial after some steps."""


@dataclass(frozen=True, slots=True)
class Place:
    """An arm after some steps, the mean over its seeds; differences in the task's units."""

    step: int
    gain: float
    """In-domain: tuned minus base, on the same items."""
    forgetting: float | None
    """Base minus tuned, mean over retention tasks; None where there is none."""
    seeds: int
    items: int
    """Of the in-domain task."""


def draw(view: StudyView, task: str) -> Figure | None:
    """The curves of one training task; None where no trial of it was scored while it trained."""
    curves = {arm.label: places(view, arm) for arm in view.arms(task)}
    arms = [arm for arm in view.arms(task) if curves[arm.label]]
    if not arms:
        return None
    drawn = Drawing(view, task, arms, curves)
    return Figure(
        key=f"curve-{view.training_tasks.index(task)}",
        title=f"Learning and forgetting by step, {task}",
        finding=_finding(view, arms, curves),
        table=_table(view, task, arms, curves),
        plot=drawn.figure,
        how_to_read="One line per arm, the mean over its seeds, from the untuned base on; a marker "
        "is a moment of training, larger the later it is. "
        + (
            "Right is learned more, up is forgot less. "
            if drawn.is_plane
            else "Without a retention task the gain is drawn against the step. "
        )
        + "Scores are of the first items of the validation split; nothing was chosen by them, and "
        "the figures above and below, of all items, are what to quote.",
        choices=drawn.choices if len(drawn.choices) > 1 else (),
    )


def places(view: StudyView, arm: ArmSummary) -> list[Place]:
    """An arm's curve by rising step; a trial counts at the steps at which all its scores are.

    One that stopped early counts up to the step whose weights were kept, and from there on, as long
    as others of the arm trained, with the last score up to there.
    """
    trials = [(_spots(view, arm, trial), _kept_step(trial)) for trial in view.trials(arm)]
    steps = sorted({step for spots, _ in trials for step in spots})
    found: dict[int, list[Spot]] = defaultdict(list)
    for spots, kept in trials:
        for step in steps:
            at = step if kept is None or step <= kept else max(spots, default=None)
            if at is not None and at in spots:
                found[step].append(spots[at])
    curve = []
    for step, seeds in sorted(found.items()):
        falls_ = [fall for _, fall, _ in seeds if fall is not None]
        curve.append(
            Place(
                step=step,
                gain=float(np.mean([gain for gain, _, _ in seeds])),
                forgetting=float(np.mean(falls_)) if falls_ else None,
                seeds=len(seeds),
                items=min(n for _, _, n in seeds),
            )
        )
    return curve


def _kept_step(trial: TrialRecords) -> int | None:
    """The step whose weights a trial with early stopping kept."""
    return None if trial.train is None else trial.train.best_step


def _spots(view: StudyView, arm: ArmSummary, trial: TrialRecords) -> dict[int, Spot]:
    """One trial's curve by step, up to the weights that were kept."""
    kept = _kept_step(trial)
    spots = {}
    for step, points in _by_step(trial).items():
        if kept is not None and step > kept:
            continue
        learned = points.get(arm.task)
        gain = None if learned is None else _change(view, learned)
        falls = _falls(view, arm.task, points)
        if learned is not None and gain is not None and falls is not None:
            scale = view.forgetting_unit(arm.task).scale
            fall = scale * float(np.mean(falls)) if falls else None
            spots[step] = (view.unit(arm.task).scale * gain, fall, learned.n)
    return spots


def _by_step(trial: TrialRecords) -> dict[int, dict[str, CurvePoint]]:
    steps: dict[int, dict[str, CurvePoint]] = defaultdict(dict)
    for point in trial.curve:
        steps[point.step][point.task] = point
    return steps


def _change(view: StudyView, point: CurvePoint) -> float | None:
    """Tuned minus base on the items of a point; None where the base was not scored on them."""
    base = view.study.items.get((UNTUNED, point.task, "validation"))
    if base is None or len(base.scores) < point.n:
        return None
    return point.score - float(base.scores[: point.n].mean())


def _falls(view: StudyView, task: str, points: dict[str, CurvePoint]) -> list[float] | None:
    """Base minus tuned on every retention task of the unit that is averaged; None where one of
    them is missing."""
    falls = []
    for retained in view.retained(task):
        if view.unit(retained) != view.forgetting_unit(task):
            continue
        change = _change(view, points[retained]) if retained in points else None
        if change is None:
            return None
        falls.append(-change)
    return falls


def _finding(view: StudyView, arms: list[ArmSummary], curves: dict[str, list[Place]]) -> str:
    focus = view.focus(arms[0].task)
    arm = next((a for a in arms if focus is not None and a.label == focus.label), arms[0])
    curve = curves[arm.label]
    half = next(p for p in curve if p.gain >= max(q.gain for q in curve) / 2)
    text = f"{arm.label}: {_at(view, arm, half)}"
    if half is not curve[-1]:
        text += f"; {_at(view, arm, curve[-1])}"
    text += "."
    trials = [trial for other in view.arms(arm.task) for trial in view.trials(other)]
    without = sum(not trial.curve for trial in trials)
    if without:
        text += (
            f" {count(without, 'trial')} of {len(trials)} {'has' if without == 1 else 'have'} no "
            "curve: trained before curves were asked for, or failed before the first point."
        )
    return text


def _at(view: StudyView, arm: ArmSummary, spot: Place) -> str:
    unit, forgetting = view.unit(arm.task), view.forgetting_unit(arm.task)
    text = f"after {count(spot.step, 'step')} {difference(spot.gain / unit.scale, unit)}"
    if spot.forgetting is None:
        return text
    amount = number(abs(spot.forgetting), forgetting.digits)
    word = "forgotten" if spot.forgetting >= 0 else "gained on retention"
    return f"{text}, {amount} {forgetting.difference} {word}"


def _table(
    view: StudyView, task: str, arms: list[ArmSummary], curves: dict[str, list[Place]]
) -> DataTable:
    unit, forgetting = view.unit(task), view.forgetting_unit(task)
    columns = [
        Column("arm"),
        Column("step", 0),
        Column(f"gain over base, {unit.difference}", unit.digits + 1),
        Column(f"forgetting, {forgetting.difference}", forgetting.digits + 1),
        Column("seeds", 0),
        Column("items", 0),
    ]
    rows = [
        (arm.label, spot.step, spot.gain, spot.forgetting, spot.seeds, spot.items)
        for arm in arms
        for spot in curves[arm.label]
    ]
    return table(columns, rows)


class Drawing:
    """The plot of one task with the entries of its drop-down."""

    def __init__(
        self,
        view: StudyView,
        task: str,
        arms: list[ArmSummary],
        curves: dict[str, list[Place]],
    ) -> None:
        self.view, self.task, self.curves = view, task, curves
        self.is_plane = all(spot.forgetting is not None for a in arms for spot in curves[a.label])
        self.figure = go.Figure(layout=layout(440, margin={"l": 56, "r": 20, "t": 28, "b": 52}))
        lines = {arm.label: line for line in view.series(task) for arm in line.arms}
        traces = {arm.label: self.add_line(arm, lines.get(arm.label)) for arm in arms}
        base = self.add_base()
        self.choices = tuple(
            Choice(label, (*(traces[a.label] for a in shown), base, self.add_names(shown)))
            for label, shown in self.groups(arms)
        )
        self.name_axes()

    def groups(self, arms: list[ArmSummary]) -> list[tuple[str, list[ArmSummary]]]:
        """What can be shown: the line the answer speaks of and the best full arm, or every arm."""
        told = {arm.label for arm in self.view.focus_arms(self.task)}
        near = [arm for arm in arms if arm.label in told]
        everything = [("all arms", arms)]
        if not near or len(near) == len(arms):
            return everything
        return [("those the answer speaks of", near), *everything]

    def spots(self, arm: ArmSummary) -> list[tuple[float, float]]:
        """(x, y) from the base on."""
        curve = self.curves[arm.label]
        if self.is_plane:
            return [(0.0, 0.0), *((spot.gain, spot.forgetting or 0.0) for spot in curve)]
        return [(0.0, 0.0), *((float(spot.step), spot.gain) for spot in curve)]

    def add_line(self, arm: ArmSummary, line: Series | None) -> int:
        """Draw one arm; the index of its trace."""
        x, y = zip(*self.spots(arm), strict=True)
        color = self.view.color(arm).light
        curve = self.curves[arm.label]
        growth = (LARGEST - SMALLEST) / max(1, len(curve) - 1)
        sizes = [0.0, *(SMALLEST + growth * i for i in range(len(curve)))]
        if len(curve) == 1:
            sizes[-1] = LARGEST
        self.figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            line={"color": color, "width": 1.5, "dash": line.dash if line else "solid"},
            marker={
                "color": color,
                "symbol": line.symbol if line else "square",
                "size": sizes,
                "opacity": 1,
                "line": {"color": SURFACE.light, "width": 1},
            },
            hoverinfo="text",
            hovertext=["", *(self.hover(arm, spot) for spot in curve)],
            cliponaxis=False,
        )
        return len(self.figure.data) - 1

    def hover(self, arm: ArmSummary, spot: Place) -> str:
        """What a marker says when pointed at."""
        unit, forgetting = self.view.unit(self.task), self.view.forgetting_unit(self.task)
        lines = [
            f"<b>{name(arm.label)}</b>",
            f"step {spot.step:,}, {count(spot.seeds, 'seed')}, {count(spot.items, 'item')}",
            f"gain {number(spot.gain, unit.digits + 1)}",
        ]
        if spot.forgetting is not None:
            lines.append(f"forgetting {number(spot.forgetting, forgetting.digits + 1)}")
        return "<br>".join(lines)

    def add_base(self) -> int:
        """Mark where every curve starts; the index of its trace."""
        self.figure.add_scatter(
            x=[0],
            y=[0],
            mode="markers",
            marker={"color": BASE.light, "symbol": "x", "size": 11},
            hoverinfo="text",
            hovertext="<b>base</b><br>untuned: step 0",
            cliponaxis=False,
        )
        return len(self.figure.data) - 1

    def add_names(self, arms: list[ArmSummary]) -> int:
        """Name the ends of lines and the base, where there is room; the index of the trace."""
        points = [spot for arm in arms for spot in self.spots(arm)]
        x, y = ([spot[i] for spot in points] for i in (0, 1))
        told = [arm.label for arm in self.view.focus_arms(self.task)]
        ordered = sorted(arms, key=lambda arm: arm.label not in told)
        labels = [
            Label(*self.spots(arm)[-1], f"r={arm.rank}" if arm.rank else arm.label.split()[0])
            for arm in ordered  # 'full' of full fine-tuning, the type of a method of PEFT's
        ]
        upwards = (max(y), min(y)) if self.is_plane else (min(y), max(y))
        labels.insert(1, Label(0.0, 0.0, "base"))
        add_labels(self.figure, place(labels, points, (min(x), max(x)), upwards))
        return len(self.figure.data) - 1

    def name_axes(self) -> None:
        """Good is up and to the right."""
        unit, forgetting = self.view.unit(self.task), self.view.forgetting_unit(self.task)
        gain = f"gain over base, {unit.difference}"
        if self.is_plane:
            self.figure.update_xaxes(axis(gain))
            down = f"forgetting, {forgetting.difference} (up: less)"
            self.figure.update_yaxes(axis(down, autorange="reversed"))
        else:
            self.figure.update_xaxes(axis("optimizer step", zeroline=False))
            self.figure.update_yaxes(axis(gain))
