"""Quantities against rank: stacked panels, a line with its band per variant, horizontal references.

The rank axis is log2. If no two arms differ in rank alone, as in a comparison of methods, arms
stand side by side and intervals are bars.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankscope.report.charts.figure import (
    axis,
    hover_texts,
    layout,
    panel_heading,
    plot_text,
    records,
)
from rankscope.report.style import BASE, FULL, INK, MUTED, Color, faded

MAX_BANDS = 3
"""With more lines than this, only the focus line keeps its band."""
MAX_ARMS = 40
"""Most arms whose names fit side by side below an axis."""


class RankPoint(NamedTuple):
    """One arm on a line."""

    arm: str
    rank: int
    color: Color


@dataclass(frozen=True, slots=True)
class RankLine:
    """Arms that differ in rank alone, by rising rank."""

    label: str
    dash: str
    symbol: str
    points: tuple[RankPoint, ...]


class Reference(NamedTuple):
    """A horizontal line."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    color: Color = BASE
    dash: str = "dot"


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity: a column of a frame with one row per arm, named in its column ``arm``."""

    title: str
    """With its unit."""
    frame: pd.DataFrame
    column: str
    references: tuple[Reference, ...] = ()
    log: bool = False
    from_zero: bool = False
    """Show zero on the axis, for quantities whose ratio matters."""

    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows with a value, by arm."""
        return {r["arm"]: r for r in records(self.frame) if r[self.column] is not None}


@dataclass(frozen=True, slots=True)
class RankAxis:
    """What the figures of a task have on their horizontal axis."""

    lines: tuple[RankLine, ...]
    focus: str | None = None
    """Label of the line that the texts describe."""
    full: str | None = None
    """Label of the full fine-tuning arm that is drawn as a reference."""

    @property
    def focus_line(self) -> RankLine | None:
        """The line that the texts describe."""
        return next((line for line in self.lines if line.label == self.focus), None)

    @property
    def is_by_arm(self) -> bool:
        """Whether arms stand side by side because no line has two points."""
        sizes = [len(line.points) for line in self.lines]
        return all(size == 1 for size in sizes) and 1 < len(sizes) <= MAX_ARMS

    @property
    def against(self) -> str:
        """For titles."""
        return "by arm" if self.is_by_arm else "against rank"

    def bands_note(self, what: str = "95 % intervals") -> str:
        """What the bands or bars are, for captions."""
        if self.is_by_arm:
            return f"Bars are {what}."
        note = f"Bands are {what}."
        if len(self.lines) > MAX_BANDS:
            note += " With this many lines, only the line named above has its band."
        return note

    def places(self) -> dict[str, float]:
        """Place of each arm on the axis."""
        points = [point for line in self.lines for point in line.points]
        if self.is_by_arm:
            return {point.arm: float(place) for place, point in enumerate(points)}
        return {point.arm: math.log2(point.rank) for point in points}

    def ticks(self) -> list[tuple[str, float]]:
        """Names and places of the ticks; long names may be cut to the same text."""
        places = self.places()
        if self.is_by_arm:
            return [(plot_text(arm), place) for arm, place in places.items()]
        ranks = sorted({point.rank for line in self.lines for point in line.points})
        return [(str(rank), math.log2(rank)) for rank in ranks]

    def ends(self) -> tuple[float, float]:
        """Ends of the axis, with room for the names of references on the right."""
        left, right = min(self.places().values()), max(self.places().values())
        width = max(right - left, 1.0)
        if self.is_by_arm:
            return left - 0.5, right + 0.5 + 0.06 * width
        return left - 0.06 * width, right + 0.14 * width


def rank_plot(rank_axis: RankAxis, panels: Sequence[Panel]) -> go.Figure | None:
    """Stacked panels over one axis; None if no arm on a line has a value in any panel."""
    placed = {point.arm for line in rank_axis.lines for point in line.points}
    if not any(placed & panel.rows().keys() for panel in panels):
        return None
    rows = len(panels)
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.18 / rows if rows > 1 else 0
    )
    ticks = rank_axis.ticks()
    # Names of arms are written downwards.
    names_height = 6 * max(len(text) for text, _ in ticks) if rank_axis.is_by_arm else 0
    height = (300 if rows == 1 else 200 * rows) + 84 + names_height
    figure.update_layout(layout(height, margin={"l": 48, "r": 20, "t": 36, "b": 48}))
    for row, panel in enumerate(panels, start=1):
        _add_panel(figure, row, rank_axis, panel)
    figure.update_xaxes(
        axis(
            range=list(rank_axis.ends()),
            zeroline=False,
            tickvals=[place for _, place in ticks],
            ticktext=[text for text, _ in ticks],
            tickangle=90 if rank_axis.is_by_arm else None,
        )
    )
    title = "" if rank_axis.is_by_arm else "LoRA rank r (log scale)"
    figure.update_xaxes(title_text=title, row=rows, col=1)
    return figure


def _add_panel(figure: go.Figure, row: int, rank_axis: RankAxis, panel: Panel) -> None:
    at, found = {"row": row, "col": 1}, panel.rows()
    references = [*_full_reference(rank_axis, panel), *panel.references]
    heights = list(_heights(panel, rank_axis, references))
    span = max(heights) - min(heights) if heights else 0.0
    for reference, side in zip(references, _sides(references, span, panel.log), strict=True):
        _add_reference(figure, at, reference, rank_axis.ends(), side)
    for line in rank_axis.lines:
        drawn = [point for point in line.points if point.arm in found]
        has_band = len(rank_axis.lines) <= MAX_BANDS or line.label == rank_axis.focus
        if has_band and not rank_axis.is_by_arm:
            _add_band(figure, at, rank_axis, panel, drawn)
        if drawn:
            _add_line(figure, at, rank_axis, panel, line, drawn)
    y_axis = axis(
        type="log" if panel.log else "linear",
        rangemode="tozero" if panel.from_zero else "normal",
        dtick=_log_ticks(span) if panel.log else None,
    )
    figure.update_yaxes(y_axis, **at)
    top = figure.layout["yaxis" if row == 1 else f"yaxis{row}"].domain[1]
    figure.add_annotation(panel_heading(panel.title, 0, top) | {"xshift": -4})


def _full_reference(rank_axis: RankAxis, panel: Panel) -> list[Reference]:
    row = panel.rows().get(rank_axis.full or "")
    if row is None:
        return []
    low, high = row.get(f"{panel.column}, low"), row.get(f"{panel.column}, high")
    return [Reference("full", row[panel.column], low, high, FULL, "solid")]


def _add_band(
    figure: go.Figure,
    at: Mapping[str, int],
    rank_axis: RankAxis,
    panel: Panel,
    drawn: Sequence[RankPoint],
) -> None:
    places, found = rank_axis.places(), panel.rows()
    ends = [
        (places[point.arm], found[point.arm].get(f"{panel.column}, low"),
         found[point.arm].get(f"{panel.column}, high"))
        for point in drawn
    ]  # fmt: skip
    known = [end for end in ends if None not in end]
    if known:
        x = [place for place, _, _ in known]
        low, high = [low for _, low, _ in known], [high for _, _, high in known]
        _add_area(figure, at, [*x, *x[::-1]], [*high, *low[::-1]], MUTED)


def _add_area(
    figure: go.Figure, at: Mapping[str, int], x: Sequence[float], y: Sequence[Any], color: Color
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        fill="toself",
        fillcolor=faded(color.light),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        **at,
    )


def _add_line(
    figure: go.Figure,
    at: Mapping[str, int],
    rank_axis: RankAxis,
    panel: Panel,
    line: RankLine,
    drawn: Sequence[RankPoint],
) -> None:
    places, found = rank_axis.places(), panel.rows()
    values = [found[point.arm][panel.column] for point in drawn]
    texts = dict(
        zip(panel.frame["arm"], hover_texts(panel.frame, "arm", {"": panel.column}), strict=True)
    )
    figure.add_scatter(
        x=[places[point.arm] for point in drawn],
        y=values,
        error_y=_bars(panel, drawn) if rank_axis.is_by_arm else None,
        mode="lines+markers",
        line={"color": MUTED.light, "dash": line.dash, "width": 1.5},
        marker={
            "color": [point.color.light for point in drawn],
            "symbol": line.symbol,
            "size": 10,
        },
        hoverinfo="text",
        hovertext=[texts[point.arm] for point in drawn],
        **at,
    )


def _bars(panel: Panel, drawn: Sequence[RankPoint]) -> dict[str, object]:
    found = panel.rows()

    def length(arm: str, end: str) -> float:
        value, other = found[arm][panel.column], found[arm].get(f"{panel.column}, {end}")
        return 0.0 if other is None else abs(other - value)

    return {
        "type": "data",
        "symmetric": False,
        "arrayminus": [length(point.arm, "low") for point in drawn],
        "array": [length(point.arm, "high") for point in drawn],
        "color": MUTED.light,
        "thickness": 1.5,
        "width": 0,
    }


def _add_reference(
    figure: go.Figure,
    at: Mapping[str, int],
    reference: Reference,
    ends: tuple[float, float],
    side: str,
) -> None:
    label, value, low, high, color, dash = reference
    if low is not None and high is not None:
        _add_area(figure, at, [*ends, *ends[::-1]], [low, low, high, high], color)
    row = pd.DataFrame({"name": [label], "v": [value], "v, low": [low], "v, high": [high]})
    figure.add_scatter(
        x=list(ends),
        y=[value, value],
        mode="lines+text",
        line={"color": color.light, "dash": dash, "width": 1.5},
        text=["", plot_text(label)],
        textposition=side,
        cliponaxis=False,  # A line at the top of its panel keeps its name.
        textfont={"color": INK.light if color == BASE else color.light, "size": 12},
        hoverinfo="text",
        hovertext=hover_texts(row, "name", {"": "v"}),
        **at,
    )


def _heights(panel: Panel, rank_axis: RankAxis, references: Sequence[Reference]) -> Iterator[float]:
    """Every drawn value in the units of the axis, ends of intervals included."""
    placed = rank_axis.places()
    titles = [panel.column, f"{panel.column}, low", f"{panel.column}, high"]
    values = [
        row.get(title) for arm, row in panel.rows().items() if arm in placed for title in titles
    ]
    values += [v for reference in references for v in reference[1:4]]
    for value in values:
        if value is not None and (value > 0 or not panel.log):
            yield math.log10(value) if panel.log else value
    if panel.from_zero:
        yield 0.0


def _log_ticks(decades: float) -> int | str | None:
    """Ticks of a logarithmic axis: at powers of ten, at 1, 2 and 5, or chosen by Plotly."""
    if decades > 1.5:
        return 1
    return "D2" if decades > 0.6 else None


def _sides(references: Sequence[Reference], span: float, log: bool) -> list[str]:
    """Put the name of each reference above its line, or below if another line is close above."""
    heights = [math.log10(r.value) if log and r.value > 0 else r.value for r in references]

    def has_close_line_above(place: int) -> bool:
        return any(
            0 <= other - heights[place] < 0.12 * span and (other > heights[place] or place < j)
            for j, other in enumerate(heights)
            if j != place
        )

    return ["bottom left" if has_close_line_above(i) else "top left" for i in range(len(heights))]
