"""The learning-forgetting plane: what each arm gained in its domain and what it forgot.

The curve of Biderman et al. (arXiv 2405.09673), one point per arm.
"""

import math

import plotly.graph_objects as go

from rankscope.formatting import Unit, count, difference, number
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Column, DataTable, Figure, axis, layout, name, table
from rankscope.report.charts.labels import Label, add_labels, place
from rankscope.report.charts.rank_lines import Point, estimate_point
from rankscope.report.study_view import StudyView
from rankscope.report.style import BASE, FULL, INK, MUTED, SURFACE, faded

MAX_CROSSES = 60
"""With more arms than this only those on the front carry their intervals."""


def draw(view: StudyView, task: str) -> Figure:
    """The plane of one training task."""
    arms = [a for a in view.arms(task) if a.gain is not None and a.forgetting is not None]
    return Figure(
        key=f"plane-{view.training_tasks.index(task)}",
        title=f"Learning and forgetting, {task}",
        finding=_finding(view, task, arms),
        table=_table(view, task),
        plot=_plot(view, task, arms) if arms else None,
        how_to_read="Each point is one arm, the mean over its seeds; right is learned more, up is "
        "forgot less, so the good corner is top right. Crosses are 95 % intervals, lines join the "
        "ranks of one learning rate, the broad grey line is the Pareto front: "
        "no other arm learned more and forgot less. The ring marks the recommended arm.",
    )


def _finding(view: StudyView, task: str, arms: list[ArmSummary]) -> str:
    if not arms:
        if not view.retention_tasks:
            return "The study has no retention task, so what was forgotten is unknown."
        return "No arm has both a gain and a forgetting figure yet."
    unit, forgetting = view.unit(task), view.forgetting_unit(task)
    most = max(arms, key=lambda a: gain_and_fall(a)[0])
    least = min(arms, key=lambda a: gain_and_fall(a)[1])
    front = plane_front(arms)
    best, fall = gain_and_fall(most)
    return (
        f"The largest gain is {difference(best, unit)} ({most.label}), with "
        f"{_forgotten(fall, forgetting)}; {least.label} forgot least "
        f"({_forgotten(gain_and_fall(least)[1], forgetting)}). {count(len(front), 'arm')} of "
        f"{len(arms)} {'is' if len(front) == 1 else 'are'} on the Pareto front."
    )


def gain_and_fall(arm: ArmSummary) -> tuple[float, float]:
    """Gain over base and forgetting, shares of 1 or nats; for arms that have both."""
    if arm.gain is None or arm.forgetting is None:
        raise ValueError(f"{arm.label} has no place on the plane")
    return arm.gain.value, arm.forgetting.value


def plane_front(arms: list[ArmSummary]) -> list[ArmSummary]:
    """Arms that no other arm beats in gain and forgetting together, by rising gain.

    ``ArmSummary.on_pareto_front`` counts parameters too; a plane can show two quantities only.
    """
    front = []
    least = math.inf
    for arm in sorted(arms, key=lambda a: (-gain_and_fall(a)[0], gain_and_fall(a)[1])):
        if gain_and_fall(arm)[1] < least:
            least = gain_and_fall(arm)[1]
            front.append(arm)
    return front[::-1]


def _forgotten(value: float, unit: Unit) -> str:
    amount = number(abs(value) * unit.scale, unit.digits)
    if round(abs(value) * unit.scale, unit.digits) == 0:
        return "no forgetting"
    return f"{amount} {unit.difference} {'forgotten' if value > 0 else 'gained on retention'}"


def _table(view: StudyView, task: str) -> DataTable:
    unit, forgetting = view.unit(task), view.forgetting_unit(task)
    placed = [a for a in view.arms(task) if a.gain is not None and a.forgetting is not None]
    front = {arm.label for arm in plane_front(placed)}
    rows = []
    for arm in view.arms(task):
        gain = estimate_point(arm.gain, unit) or (None, None, None)
        forgot = estimate_point(arm.forgetting, forgetting) or (None, None, None)
        fronts = ["yes" if on else "no" for on in (arm.label in front, arm.on_pareto_front)]
        rows.append((arm.label, arm.seeds, *gain, *forgot, *fronts))
    g, f = unit.digits + 1, forgetting.digits + 1
    columns = [
        Column("arm"),
        Column("seeds", 0),
        Column(f"gain over base, {unit.difference}", g),
        Column("low", g),
        Column("high", g),
        Column(f"forgetting, {forgetting.difference}", f),
        Column("low", f),
        Column("high", f),
        Column("on the front"),
        Column("on the front with parameters counted"),
    ]
    return table(columns, rows)


def _plot(view: StudyView, task: str, arms: list[ArmSummary]) -> go.Figure:
    unit, forgetting = view.unit(task), view.forgetting_unit(task)
    at = {
        arm.label: (gain, forgot)
        for arm in arms
        if (gain := estimate_point(arm.gain, unit))
        and (forgot := estimate_point(arm.forgetting, forgetting))
    }
    figure = go.Figure(layout=layout(440, margin={"l": 56, "r": 20, "t": 28, "b": 52}))
    front = plane_front(arms)
    _add_front(figure, front, at)
    _add_crosses(figure, view, front if len(arms) > MAX_CROSSES else arms, at)
    for series in view.series(task):
        drawn = [a for a in series.arms if a.label in at]
        colors = [view.color(a).light for a in drawn]
        style: dict[str, dict[str, object]] = {
            "marker": {"color": colors, "symbol": series.symbol, "size": 11},
            "line": {"color": MUTED.light, "dash": series.dash, "width": 1},
        }
        _add_points(figure, drawn, at, style)
    full = sorted((a for a in arms if a.is_full), key=lambda a: a.lr)
    style = {
        "marker": {"color": FULL.light, "symbol": "square", "size": 11},
        "line": {"color": FULL.light, "width": 1},
    }
    _add_points(figure, full, at, style)
    figure.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"color": BASE.light, "symbol": "x", "size": 11},
        hoverinfo="text",
        hovertext="<b>base</b><br>untuned: the origin",
    )
    chosen = _chosen(view, task, at)
    if chosen is not None:
        _add_ring(figure, at[chosen.label])
    _add_names(figure, [*([chosen] if chosen else []), *full, *front], at)
    figure.update_xaxes(axis(f"gain over base, {unit.difference}"))
    figure.update_yaxes(
        axis(f"forgetting, {forgetting.difference} (up: less)", autorange="reversed")
    )
    return figure


At = dict[str, tuple[Point, Point]]


def _add_points(
    figure: go.Figure,
    arms: list[ArmSummary],
    at: At,
    style: dict[str, dict[str, object]],
) -> None:
    if not arms:
        return
    figure.add_scatter(
        x=[at[a.label][0].value for a in arms],
        y=[at[a.label][1].value for a in arms],
        mode="lines+markers",
        marker=style["marker"] | {"line": {"color": SURFACE.light, "width": 1}},
        line=style["line"],
        hoverinfo="text",
        hovertext=[_hover(a, *at[a.label]) for a in arms],
        cliponaxis=False,
    )


def _add_names(figure: go.Figure, arms: list[ArmSummary], at: At) -> None:
    """Name the base and the given arms, most important first, where there is room."""
    labels = []
    for arm in dict.fromkeys(arm.label for arm in arms):
        found = next(a for a in arms if a.label == arm)
        text = found.short_label
        labels.append(Label(at[arm][0].value, at[arm][1].value, text))
    ends = [p for pair in at.values() for p in pair]
    known = [[v for v in (p.low, p.value, p.high, 0.0) if v is not None] for p in ends]
    x, y = ([v for values in known[axis_::2] for v in values] for axis_ in (0, 1))
    points = [(0.0, 0.0), *((gain.value, forgot.value) for gain, forgot in at.values())]
    labels.insert(1, Label(0.0, 0.0, "base"))
    add_labels(figure, place(labels, points, (min(x), max(x)), (max(y), min(y))))


def _hover(arm: ArmSummary, gain: Point, forgot: Point) -> str:
    lines = [f"<b>{name(arm.label)}</b>"]
    for word, p in (("gain", gain), ("forgetting", forgot)):
        ends = "interval unknown"
        if p.low is not None and p.high is not None:
            ends = f"{number(p.low, 2)} to {number(p.high, 2)}"
        lines.append(f"{word} {number(p.value, 2)} ({ends})")
    return "<br>".join(lines)


def _add_front(figure: go.Figure, front: list[ArmSummary], at: At) -> None:
    figure.add_scatter(
        x=[at[a.label][0].value for a in front],
        y=[at[a.label][1].value for a in front],
        mode="lines",
        line={"color": faded(MUTED.light), "width": 14},
        hoverinfo="skip",
    )


def _add_crosses(figure: go.Figure, view: StudyView, arms: list[ArmSummary], at: At) -> None:
    by_color: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for arm in arms:
        gain, forgot = at[arm.label]
        x, y = by_color.setdefault(view.color(arm).light, ([], []))
        if gain.low is not None:
            x += [gain.low, gain.high, None]
            y += [forgot.value, forgot.value, None]
        if forgot.low is not None:
            x += [gain.value, gain.value, None]
            y += [forgot.low, forgot.high, None]
    for color, (x, y) in by_color.items():
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": color, "width": 1},
            opacity=0.55,
            hoverinfo="skip",
        )


def _chosen(view: StudyView, task: str, at: At) -> ArmSummary | None:
    advice = view.advice(task)
    chosen = advice.chosen if advice else None
    return chosen if chosen and chosen.label in at else None


def _add_ring(figure: go.Figure, place_of: tuple[Point, Point]) -> None:
    figure.add_scatter(
        x=[place_of[0].value],
        y=[place_of[1].value],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 22,
            "color": INK.light,
            "line": {"width": 2, "color": INK.light},
        },
        hoverinfo="skip",
        cliponaxis=False,
    )
