"""Quantities against rank: stacked panels, one line with its band per variant, and references.

The rank axis is log2. If no two arms differ only in rank, as in a comparison of methods, arms stand
side by side and intervals are bars.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankscope.formatting import number
from rankscope.report.charts.figure import (
    axis,
    error_bars,
    hover_texts,
    layout,
    panel_heading,
    plot_text,
    records,
    value_text,
)
from rankscope.report.charts.labels import PointLabel, add_labels
from rankscope.report.style import BASE_COLOR, FULL_COLOR, INK, MUTED, Color, faded

MAX_BANDS = 3  # With more lines than this, only the focus line keeps its band
MAX_NAMES = 40  # Most arms whose names fit side by side below an axis


class RankPoint(NamedTuple):
    arm: str
    rank: int
    color: Color


class RankLine(NamedTuple):
    """Arms that differ only in rank, by rising rank."""

    label: str
    dash: str
    symbol: str
    points: tuple[RankPoint, ...]


class Reference(NamedTuple):
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    color: Color = BASE_COLOR
    dash: str = "dot"


class Panel(NamedTuple):
    """One quantity: a column of a frame with one row per arm, named in its column ``arm``."""

    frame: pd.DataFrame
    column: str  # Its title is the panel's heading, with the unit
    references: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True)
class RankAxis:
    """The horizontal axis of a task's figures."""

    lines: tuple[RankLine, ...]
    focus: str | None = None  # Label of the line that the texts describe
    full: str | None = None  # Label of the full fine-tuning arm that is drawn as a reference
    title: str = "LoRA rank r (log scale)"

    @property
    def focus_points(self) -> tuple[RankPoint, ...]:
        """The arms on the line that the texts describe."""
        return next((line.points for line in self.lines if line.label == self.focus), ())

    @property
    def is_by_arm(self) -> bool:
        """Whether arms stand side by side, because no line has two points."""
        sizes = [len(line.points) for line in self.lines]
        return all(size == 1 for size in sizes) and 1 < len(sizes) <= MAX_NAMES

    @property
    def against(self) -> str:
        return "by configuration" if self.is_by_arm else "against rank"

    def bands_note(self, shown: str = "95 % intervals") -> str:
        """Write for captions what the bands or bars show."""
        note = f"{'Bars' if self.is_by_arm else 'Bands'} are {shown}."
        if not self.is_by_arm and len(self.lines) > MAX_BANDS:
            note += " With this many lines, only the line named above has its band."
        return note

    def places(self) -> dict[str, float]:
        points = [point for line in self.lines for point in line.points]
        if self.is_by_arm:
            return {point.arm: float(place) for place, point in enumerate(points)}
        return {point.arm: math.log2(point.rank) for point in points}

    def ends(self) -> tuple[float, float]:
        """Return the ends of the axis, with room for the names of references on the right."""
        left, right = min(self.places().values()), max(self.places().values())
        width = max(right - left, 1.0)
        if self.is_by_arm:
            return left - 0.5, right + 0.5 + 0.06 * width
        return left - 0.06 * width, right + 0.14 * width


def rank_plot(
    rank_axis: RankAxis, panels: Sequence[Panel], names: Mapping[str, str] = MappingProxyType({})
) -> go.Figure | None:
    """Draw stacked panels over one axis; None if no arm on a line has a value in any panel.

    ``names`` are the texts at the arms' points in the first panel, most important first.
    """
    drawings = [_PanelDrawing(rank_axis, panel) for panel in panels]
    if not any(drawing.has_points for drawing in drawings):
        return None
    rows, places, by_arm = len(panels), rank_axis.places(), rank_axis.is_by_arm
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.18 / rows if rows > 1 else 0
    )
    ranks = {
        str(point.rank): places[point.arm] for line in rank_axis.lines for point in line.points
    }
    # Names of arms may be cut to the same text, so they are no keys.
    ticks = [(plot_text(arm), at) for arm, at in places.items()] if by_arm else [*ranks.items()]
    # Names of arms are written downwards.
    names_height = 6 * max(len(text) for text, _ in ticks) if by_arm else 0
    height = (300 if rows == 1 else 200 * rows) + 84 + names_height
    figure.update_layout(layout(height, margin={"l": 48, "r": 20, "t": 36, "b": 48 + names_height}))
    for row, drawing in enumerate(drawings, start=1):
        drawing.add_to(figure, row)
    texts, values = zip(*sorted(ticks, key=lambda tick: tick[1]), strict=True)
    shared = axis(tickvals=list(values), ticktext=list(texts), tickangle=90 if by_arm else None)
    figure.update_xaxes(shared | {"range": list(rank_axis.ends()), "zeroline": False})
    figure.update_xaxes(title_text="" if by_arm else rank_axis.title, row=rows, col=1)
    drawings[0].add_names(figure, names)
    return figure


class _PanelDrawing:
    def __init__(self, rank_axis: RankAxis, panel: Panel) -> None:
        self.axis, self.panel = rank_axis, panel
        self.places = rank_axis.places()
        titles = [panel.column, f"{panel.column}, low", f"{panel.column}, high"]
        texts = hover_texts(panel.frame, "arm", {"": panel.column})
        self.values: dict[str, tuple[Any, Any, Any, str]] = {}
        """Value, low, high and hover text by arm."""
        for row, text in zip(records(panel.frame), texts, strict=True):
            if row[panel.column] is not None:
                value, low, high = (row.get(title) for title in titles)
                self.values[row["arm"]] = (value, low, high, text)
        self.references = list(panel.references)
        if rank_axis.full in self.values:
            value, low, high, _ = self.values[rank_axis.full]
            self.references.insert(0, Reference("full", value, low, high, FULL_COLOR, "solid"))

    @property
    def has_points(self) -> bool:
        return bool(self.places.keys() & self.values)

    def add_to(self, figure: go.Figure, row: int) -> None:
        at, by_arm = {"row": row, "col": 1}, self.axis.is_by_arm
        for reference, side in zip(self.references, self._sides(), strict=True):
            self._add_reference(figure, at, reference, side)
        for line in self.axis.lines:
            drawn = [point for point in line.points if point.arm in self.values]
            has_band = len(self.axis.lines) <= MAX_BANDS or line.label == self.axis.focus
            if has_band and not by_arm:
                self._add_band(figure, at, drawn)
            if drawn:
                self._add_line(figure, at, line, drawn)
        figure.update_yaxes(axis(), **at)
        top = figure.layout["yaxis" if row == 1 else f"yaxis{row}"].domain[1]
        figure.add_annotation(panel_heading(self.panel.column, 0, top) | {"xshift": -4})

    def _add_band(self, figure: go.Figure, at: dict[str, int], drawn: Sequence[RankPoint]) -> None:
        ends = [(self.places[p.arm], *self.values[p.arm][1:3]) for p in drawn]
        known = [end for end in ends if None not in end]
        if known:
            x, low, high = (list(values) for values in zip(*known, strict=True))
            _add_area(figure, at, [*x, *x[::-1]], [*high, *low[::-1]], MUTED)

    def _add_line(
        self, figure: go.Figure, at: dict[str, int], line: RankLine, drawn: Sequence[RankPoint]
    ) -> None:
        values = [self.values[point.arm] for point in drawn]
        has_bars = self.axis.is_by_arm or len(drawn) == 1  # one point has no band
        colors = [point.color.light for point in drawn]
        figure.add_scatter(
            x=[self.places[point.arm] for point in drawn],
            y=[value for value, *_ in values],
            error_y=error_bars(v[:3] for v in values) if has_bars else None,
            mode="lines+markers",
            line={"color": MUTED.light, "dash": line.dash, "width": 1.5},
            marker={"color": colors, "symbol": line.symbol, "size": 10},
            hoverinfo="text",
            hovertext=[text for *_, text in values],
            **at,
        )

    def _add_reference(
        self, figure: go.Figure, at: dict[str, int], reference: Reference, side: str
    ) -> None:
        label, value, low, high, color, dash = reference
        ends = self.axis.ends()
        if low is not None and high is not None:
            _add_area(figure, at, [*ends, *ends[::-1]], [low, low, high, high], color)
        digits = self.panel.frame.attrs["columns"][self.panel.column].places
        has_interval = low is not None and high is not None
        text = value_text(value, low, high, digits) if has_interval else number(value, digits)
        figure.add_scatter(
            x=list(ends),
            y=[value, value],
            mode="lines+text",
            line={"color": color.light, "dash": dash, "width": 1.5},
            text=["", plot_text(label)],
            textposition=side,
            cliponaxis=False,  # A line at the top of its panel keeps its name.
            textfont={"color": INK.light if color == BASE_COLOR else color.light, "size": 12},
            hoverinfo="text",
            hovertext=f"<b>{plot_text(label)}</b><br>{text}",
            **at,
        )

    def add_names(self, figure: go.Figure, names: Mapping[str, str]) -> None:
        at = {a: (x, self.values[a][0]) for a, x in self.places.items() if a in self.values}
        labels = [PointLabel(*at[arm], text) for arm, text in names.items() if arm in at]
        if labels:
            left, right = self.axis.ends()
            # The names of the reference lines take the room at their right ends.
            taken = [(right - 0.06 * (right - left), line.value) for line in self.references]
            ends = [0.0, *(end for _, *both, _ in self.values.values() for end in both)]
            points = [*taken, *at.values()]
            add_labels(figure, labels, points, (left, right), (min(ends), max(ends)))

    def _sides(self) -> list[str]:
        """Place names above their line, or below it if another line is close above."""
        drawn = [v for arm, (*ends, _) in self.values.items() if arm in self.places for v in ends]
        drawn += [v for reference in self.references for v in reference[1:4]]
        known = [value for value in drawn if value is not None]
        close = 0.12 * (max(known) - min(known)) if known else 0.0
        heights = [reference.value for reference in self.references]

        def has_line_above(place: int, height: float) -> bool:
            return any(
                0 <= other - height < close and (other > height or place < j)
                for j, other in enumerate(heights)
                if j != place
            )

        return [
            "bottom left" if has_line_above(place, height) else "top left"
            for place, height in enumerate(heights)
        ]


def _add_area(
    figure: go.Figure, at: dict[str, int], x: Sequence[float], y: Sequence[Any], color: Color
) -> None:
    style = {"fill": "toself", "fillcolor": faded(color.light), "line": {"width": 0}}
    figure.add_scatter(x=x, y=y, mode="lines", hoverinfo="skip", **style, **at)
