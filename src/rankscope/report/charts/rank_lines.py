"""The drawing most figures share: quantities of the arms against rank, one panel each, stacked.

The rank axis is log2; arms of one learning rate form a line with its 95 % band (or range over
seeds); full fine-tuning, the base and other references are horizontal lines. Where no two arms
differ in rank alone, as in a comparison of methods, every arm has a place of its own and its
interval as a bar.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankscope.formatting import Unit, number
from rankscope.records import ArmSummary, Estimate, TrialRecords
from rankscope.report.charts.figure import axis, heading, layout, name
from rankscope.report.study_view import Series, StudyView
from rankscope.report.style import BASE, FULL, INK, MUTED, Color, faded

MAX_BANDS = 3
"""With more lines than this, only the line the text speaks of carries its band."""
MAX_ARMS = 40
"""Most arms whose names fit side by side below an axis."""


class Point(NamedTuple):
    """One value with what surrounds it; None where unknown."""

    value: float
    low: float | None
    high: float | None


class Line(NamedTuple):
    """A horizontal reference."""

    label: str
    point: Point
    color: Color
    dash: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity against rank."""

    heading: str
    """With its unit."""
    value: Callable[[ArmSummary], Point | None]
    digits: int | None = None
    lines: tuple[Line, ...] = ()
    log: bool = False
    from_zero: bool = False
    """The axis shows zero: for quantities whose ratio matters."""


def estimate_point(estimate: Estimate | None, unit: Unit, sign: float = 1.0) -> Point | None:
    """An estimate in its unit; ``sign`` -1 turns a rise into a fall."""
    if estimate is None:
        return None
    scale = sign * unit.scale
    if estimate.low is None or estimate.high is None:
        return Point(estimate.value * scale, None, None)
    low, high = sorted((estimate.low * scale, estimate.high * scale))
    return Point(estimate.value * scale, low, high)


def over_seeds(
    trials: Sequence[TrialRecords], value: Callable[[TrialRecords], float | None]
) -> Point | None:
    """Mean over an arm's trials, with the smallest and the largest."""
    values = [v for v in map(value, trials) if v is not None and math.isfinite(v)]
    if not values:
        return None
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Point(sum(values) / len(values), low, high)


def full_line(
    view: StudyView, task: str, value: Callable[[ArmSummary], Point | None]
) -> list[Line]:
    """Full fine-tuning's value as a reference line, where there is one."""
    arm = view.best_full(task)
    point = value(arm) if arm else None
    return [Line("full", point, FULL, "solid")] if point else []


def base_line(point: Point | None) -> list[Line]:
    """The base model's value as a reference line, where there is one."""
    return [Line("base", point, BASE, "dot")] if point else []


def is_by_arm(view: StudyView, task: str) -> bool:
    """Whether the arms stand side by side, since no line over rank has two points."""
    lines = view.series(task)
    arms = sum(len(series.arms) for series in lines)
    return all(len(series.arms) == 1 for series in lines) and 1 < arms <= MAX_ARMS


def against(view: StudyView, task: str) -> str:
    """What the figures of a task are drawn against, for their titles."""
    return "by arm" if is_by_arm(view, task) else "against rank"


def bands_note(view: StudyView, task: str, what: str = "95 % intervals") -> str:
    """What bands or bars are, and which lines carry one where there are many."""
    if is_by_arm(view, task):
        return f"Bars are {what}."
    note = f"Bands are {what}."
    if len(view.series(task)) > MAX_BANDS:
        note += " Of the many lines only the one named above carries its band."
    return note


@dataclass(frozen=True, slots=True)
class Places:
    """Where arms stand on the horizontal axis."""

    at: Mapping[str, float]
    """Label of an arm -> place."""
    ticks: Sequence[tuple[str, float]]
    """Names, which may be cut to the same, and their places."""
    title: str
    has_bars: bool
    """Intervals are bars of single points, not bands of lines."""

    @classmethod
    def of(cls, view: StudyView, task: str) -> "Places":
        """Of a task's LoRA arms: log2 of their ranks, or one after another."""
        arms = [arm for series in view.series(task) for arm in series.arms]
        if is_by_arm(view, task):
            at = {arm.label: float(place) for place, arm in enumerate(arms)}
            names = [(name(arm.label), at[arm.label]) for arm in arms]
            return cls(at, names, "", has_bars=True)
        ranks = sorted({arm.rank or 1 for arm in arms})
        at = {arm.label: math.log2(arm.rank or 1) for arm in arms}
        ticks = [(str(rank), math.log2(rank)) for rank in ranks]
        return cls(at, ticks, "LoRA rank r (log scale)", has_bars=False)

    @property
    def ends(self) -> tuple[float, float]:
        """Of the axis; a reference's name stands at the right end, which leaves it room."""
        left, right = min(self.at.values()), max(self.at.values())
        width = max(right - left, 1.0)
        if self.has_bars:
            return left - 0.5, right + 0.5 + 0.06 * width
        return left - 0.06 * width, right + 0.14 * width


def rank_plot(view: StudyView, task: str, panels: Sequence[Panel]) -> go.Figure | None:
    """Stacked panels over one axis; None where no LoRA arm has a value in any panel."""
    lines = view.series(task)
    has_value = any(p.value(arm) is not None for p in panels for s in lines for arm in s.arms)
    if not has_value:
        return None
    places = Places.of(view, task)
    spoken_of = view.focus_series(task)
    rows = len(panels)
    plot_height = 300 if rows == 1 else 200 * rows
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.18 / rows if rows > 1 else 0
    )
    # Names of arms are written downwards.
    names_height = 6 * max(len(text) for text, _ in places.ticks) if places.has_bars else 0
    figure.update_layout(layout(plot_height + 84 + names_height))
    for row, panel in enumerate(panels, start=1):
        for line, side in zip(panel.lines, _sides(panel, lines), strict=True):
            _add_reference(figure, row, line, (*places.ends, side), panel.digits)
        for series in lines:
            has_band = len(lines) <= MAX_BANDS or series == spoken_of
            if has_band and not places.has_bars:
                _add_band(figure, row, series, panel, places)
            _add_series(figure, row, view, series, panel, places)
        y_axis = axis(
            type="log" if panel.log else "linear",
            rangemode="tozero" if panel.from_zero else "normal",
            dtick=_log_ticks(_span(panel, lines)) if panel.log else None,
        )
        figure.update_yaxes(y_axis, row=row, col=1)
        top = figure.layout["yaxis" if row == 1 else f"yaxis{row}"].domain[1]
        figure.add_annotation(heading(panel.heading, top))
    x_axis = axis(
        range=list(places.ends),
        zeroline=False,
        tickvals=[place for _, place in places.ticks],
        ticktext=[text for text, _ in places.ticks],
        tickangle=90 if places.has_bars else None,
    )
    figure.update_xaxes(x_axis)
    figure.update_xaxes(title_text=places.title, row=rows, col=1)
    return figure


def _heights(panel: Panel, lines: Sequence[Series]) -> list[float]:
    """Every value of a panel on its axis, ends of intervals too."""
    points = [line.point for line in panel.lines]
    points += [p for series in lines for arm in series.arms if (p := panel.value(arm))]
    values = [v for point in points for v in point if v is not None]
    if panel.log:
        return [math.log10(v) for v in values if v > 0]
    return [*values, 0.0] if panel.from_zero else values


def _span(panel: Panel, lines: Sequence[Series]) -> float:
    """Height of a panel in its axis's units; decades of a logarithmic one."""
    heights = _heights(panel, lines)
    return max(heights) - min(heights) if heights else 0.0


def _log_ticks(decades: float) -> int | str | None:
    """Ticks of a logarithmic axis: at powers of ten, at 1, 2 and 5, or wherever there is room."""
    if decades > 1.5:
        return 1
    return "D2" if decades > 0.6 else None


def _sides(panel: Panel, lines: Sequence[Series]) -> list[str]:
    """Where the name of every reference line stands: above it, or below where another line that
    lies close above has its name."""
    close = 0.12 * _span(panel, lines)
    at = [
        math.log10(line.point.value) if panel.log and line.point.value > 0 else line.point.value
        for line in panel.lines
    ]
    return [
        "bottom left"
        if any(
            0 <= other - own < close and (other > own or place < position)
            for place, other in enumerate(at)
            if place != position
        )
        else "top left"
        for position, own in enumerate(at)
    ]


def _points(series: Series, panel: Panel, places: Places) -> list[tuple[ArmSummary, float, Point]]:
    """(arm, place, point) of the arms that have a value."""
    found = [(arm, panel.value(arm)) for arm in series.arms]
    return [(arm, places.at[arm.label], p) for arm, p in found if p is not None]


def _add_band(figure: go.Figure, row: int, series: Series, panel: Panel, places: Places) -> None:
    band = [
        (at, p.low, p.high)
        for _, at, p in _points(series, panel, places)
        if p.low is not None and p.high is not None
    ]
    if not band:
        return
    outline = [(at, high) for at, _, high in band] + [(at, low) for at, low, _ in band[::-1]]
    figure.add_scatter(
        x=[at for at, _ in outline],
        y=[y for _, y in outline],
        fill="toself",
        fillcolor=faded(MUTED.light),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        row=row,
        col=1,
    )


def _add_series(
    figure: go.Figure, row: int, view: StudyView, series: Series, panel: Panel, places: Places
) -> None:
    points = _points(series, panel, places)
    if not points:
        return
    bars = None
    if places.has_bars:
        ends = [(p.value if v is None else v) for _, _, p in points for v in (p.low, p.high)]
        values = [p.value for _, _, p in points for _ in range(2)]
        lengths = [abs(end - value) for end, value in zip(ends, values, strict=True)]
        bars = {
            "type": "data",
            "symmetric": False,
            "arrayminus": lengths[::2],
            "array": lengths[1::2],
            "color": MUTED.light,
            "thickness": 1.5,
            "width": 0,
        }
    figure.add_scatter(
        x=[at for _, at, _ in points],
        y=[p.value for _, _, p in points],
        error_y=bars,
        mode="lines+markers",
        line={"color": MUTED.light, "dash": series.dash, "width": 1.5},
        marker={
            "color": [view.color(arm).light for arm, _, _ in points],
            "symbol": series.symbol,
            "size": 10,
        },
        hoverinfo="text",
        hovertext=[f"<b>{name(a.label)}</b><br>{_text(p, panel.digits)}" for a, _, p in points],
        row=row,
        col=1,
    )


def _add_reference(
    figure: go.Figure,
    row: int,
    line: Line,
    ends_and_side: tuple[float, float, str],
    digits: int | None,
) -> None:
    value, low, high = line.point
    ends, side = ends_and_side[:2], ends_and_side[2]
    if low is not None and high is not None:
        figure.add_scatter(
            x=[*ends, *ends[::-1]],
            y=[low, low, high, high],
            fill="toself",
            fillcolor=faded(line.color.light),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            row=row,
            col=1,
        )
    figure.add_scatter(
        x=list(ends),
        y=[value, value],
        mode="lines+text",
        line={"color": line.color.light, "dash": line.dash, "width": 1.5},
        text=["", name(line.label)],
        textposition=side,
        cliponaxis=False,  # a line at the top of its panel keeps its name
        textfont={"color": line.color.light if line.color != BASE else INK.light, "size": 12},
        hoverinfo="text",
        hovertext=f"<b>{name(line.label)}</b><br>{_text(line.point, digits)}",
        row=row,
        col=1,
    )


def _text(point: Point, digits: int | None) -> str:
    if point.low is None or point.high is None:
        return number(point.value, digits)
    ends = f"{number(point.low, digits)} to {number(point.high, digits)}"
    return f"{number(point.value, digits)} ({ends})"
