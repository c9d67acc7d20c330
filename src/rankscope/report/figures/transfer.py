"""The train x test map: what training on one task did to every other."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from rankscope.formatting import Unit, count, difference, signed
from rankscope.records import ArmSummary, Estimate, trained_parts
from rankscope.report.charts.figure import Choice, Column, Figure, axis, layout, name, table
from rankscope.report.study_view import StudyView
from rankscope.report.style import BETTER, INK, NEUTRAL, WORSE

MAX_CHOICES = 60


def draw(view: StudyView, unit: Unit) -> Figure:
    """The map over the tasks measured in ``unit``, one layer per selectable arm."""
    tests = [t.name for t in view.study.tasks if view.unit(t.name) == unit]
    best = {task: arm for task in view.training_tasks if (arm := view.focus(task))}
    labels = sorted(
        {
            arm.label: (arm.is_full, arm.lr, arm.rank or 0) for t in best for arm in view.arms(t)
        }.items(),
        key=lambda item: item[1],
    )[:MAX_CHOICES]
    layers: list[tuple[str, dict[str, ArmSummary]]] = [("best arm of each task", best)]
    for label, _ in labels:
        arms = {t: a for t in view.training_tasks for a in view.arms(t) if a.label == label}
        layers.append((label, arms))
    layers = [(text, arms) for text, arms in layers if _cells(arms, tests)]
    rows = [
        (train, arm.label, test, e.value * unit.scale, _scaled(e.low, unit), _scaled(e.high, unit))
        for train in view.training_tasks
        for arm in view.arms(train)
        for test in tests
        if (e := change(arm, test))
    ]
    d = unit.digits + 1
    columns = [Column("trained on"), Column("arm"), Column("tested on")]
    columns += [Column(f"change, {unit.difference}", d), Column("low", d), Column("high", d)]
    return Figure(
        key=f"transfer-{unit.score.split()[0].strip('%') or 'accuracy'}",
        title=f"Train x test map, change against the base in {unit.difference}",
        finding=_finding(view, best, tests, unit),
        table=table(columns, rows),
        plot=_plot(view, layers, tests, unit) if layers else None,
        how_to_read="Rows are what was trained on, columns what was tested. Blue is better than "
        "the base, orange worse; in brackets where the 95 % interval includes zero or is unknown.",
        choices=tuple(Choice(text, (i,)) for i, (text, _) in enumerate(layers)),
        min_width=150 + 56 * len(tests),
    )


def change(arm: ArmSummary, test: str) -> Estimate | None:
    """An arm's change against the base on any task."""
    if test == arm.task:
        return arm.gain
    return arm.transfer.get(test) or arm.retention.get(test)


def _scaled(value: float | None, unit: Unit) -> float | None:
    return None if value is None else value * unit.scale


def _cells(
    arms: dict[str, ArmSummary], tests: Sequence[str]
) -> list[tuple[str, str, ArmSummary, Estimate]]:
    return [
        (train, test, arm, found)
        for train, arm in arms.items()
        for test in tests
        if (found := change(arm, test))
    ]


def _clear(estimate: Estimate) -> bool:
    """Whether the interval is known and leaves zero out."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.low > 0 or estimate.high < 0


def _finding(view: StudyView, best: dict[str, ArmSummary], tests: Sequence[str], unit: Unit) -> str:
    cells = [cell for cell in _cells(best, tests) if cell[0] != cell[1]]
    if not cells:
        return "No trained arm has been scored on another task, so transfer is unknown."
    low = min(cells, key=lambda c: c[3].value)
    high = max(cells, key=lambda c: c[3].value)
    text = (
        f"With the best arm of each task, the largest fall elsewhere is "
        f"{difference(low[3].value, unit)} on {low[1]} after training on {low[0]}"
        if low[3].value < 0
        else "With the best arm of each task, nothing else fell"
    )
    if high[3].value > 0:
        text += f"; the largest rise {difference(high[3].value, unit)} on {high[1]} after {high[0]}"
    clear = sum(_clear(c[3]) for c in cells)
    return (
        f"{text}. {count(clear, 'change')} of {len(cells)} off the diagonal "
        f"{'has' if clear == 1 else 'have'} an interval that leaves zero out."
    )


def _plot(
    view: StudyView,
    layers: Sequence[tuple[str, dict[str, ArmSummary]]],
    tests: Sequence[str],
    unit: Unit,
) -> go.Figure:
    trains = list(view.training_tasks)
    every = [abs(c[3].value) * unit.scale for _, arms in layers for c in _cells(arms, tests)]
    reach = max([*every, 1.0 if unit.scale == 100 else 0.01])
    figure = go.Figure(
        layout=layout(150 + 52 * len(trains), margin={"l": 56, "r": 20, "t": 16, "b": 72})
    )
    names = [name(t) for t in tests], [name(t) for t in trains]
    for place, (_, arms) in enumerate(layers):
        cells = {(train, test): (arm, e) for train, test, arm, e in _cells(arms, tests)}
        pairs = [[(train, test) for test in tests] for train in trains]
        grid = [[cells.get(pair) for pair in row] for row in pairs]
        figure.add_heatmap(
            x=names[0],
            y=names[1],
            z=[[e[1].value * unit.scale if e else None for e in row] for row in grid],
            text=[[_cell_text(e[1], unit) if e else "" for e in row] for row in grid],
            hovertext=[
                [
                    _hover(*e, unit) if e else _absent(view, *pair)
                    for e, pair in zip(*rows, strict=True)
                ]
                for rows in zip(grid, pairs, strict=True)
            ],
            hoverinfo="text",
            texttemplate="%{text}",
            textfont={"size": 13},
            colorscale=[[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]],
            zmin=-reach,
            zmax=reach,
            xgap=3,
            ygap=3,
            showscale=False,
            visible=place == 0,
        )
    shared: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
    figure.update_xaxes(axis("tested on", **shared))
    figure.update_yaxes(axis("trained on", **shared, autorange="reversed"))
    for test, train in ((t, t) for t in trains if t in tests):
        i, j = tests.index(test), trains.index(train)
        box = {"x0": i - 0.48, "x1": i + 0.48, "y0": j - 0.47, "y1": j + 0.47}
        figure.add_shape(**box, line={"color": INK.light, "width": 1.5}, fillcolor="rgba(0,0,0,0)")
    return figure


def _cell_text(estimate: Estimate, unit: Unit) -> str:
    text = signed(estimate.value, unit)
    return text if _clear(estimate) else f"({text})"


def _absent(view: StudyView, train: str, test: str) -> str:
    """Why a cell is empty."""
    shares = train != test and test in trained_parts(view.study, train)
    return "shares its training rows" if shares else "not scored"


def _hover(arm: ArmSummary, estimate: Estimate, unit: Unit) -> str:
    ends = "interval unknown"
    if estimate.low is not None and estimate.high is not None:
        ends = f"{signed(estimate.low, unit)} to {signed(estimate.high, unit)}"
    return f"<b>{name(arm.label)}</b><br>{difference(estimate.value, unit)} ({ends})"
