"""A figure: a title, a finding in one sentence, one data frame with its plot, or texts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rankscope.formatting import MAX_NAME, number, safe_text
from rankscope.report.columns import read_columns
from rankscope.report.style import GRID, INK, MUTED, NEUTRAL, SURFACE
from rankscope.report.table_formats import frame_rows

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

FLAT: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
"""Settings of a category axis."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a figure's drop-down: the indices of the traces it shows."""

    label: str
    traces: tuple[int, ...]


Drawn = dict[str, Any]
"""A plot with its drop-down, to be unpacked into a figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    key: str  # Unique within the page; letters, digits and hyphens
    title: str
    finding: str  # The finding, computed from the data; without a plot, what is missing
    data: pd.DataFrame
    """The frame that plot, hover texts, table and CSV file show."""
    plot: go.Figure | None = None
    caption: str = ""  # How to read the plot
    choices: Sequence[Choice] = ()
    choice_name: str = "Configuration"  # Kind of the drop-down's entries
    min_width: int = 0  # Pixels below which the plot scrolls sideways instead of shrinking
    texts: Sequence[Mapping[str, str]] = ()
    """Texts to read in place of a plot, by their titles, two side by side."""


def range_cells(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Return the mean of the known values, the smallest and the largest, named as an interval."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    ends = (min(known), max(known)) if len(known) > 1 else (None, None)
    mean = fmean(known) if known else None
    return {name: mean, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries; unknown is None."""
    return [dict(zip(frame.columns, row, strict=True)) for row in frame_rows(frame)]


def hover_texts(frame: pd.DataFrame, name: str, values: Mapping[str, str]) -> list[str]:
    """Write a hover text for each row: its name in bold, then each known value with its interval.

    Args:
        frame: as shown.
        name: column of the name.
        values: column by the word in front of the value.
    """
    columns = read_columns(frame.columns, frame.attrs.get("columns", {}))

    def line(row: Mapping[str, Any], word: str, title: str) -> str:
        value, column = row[title], columns[title]
        shown = plot_text(value) if isinstance(value, str) else column.number(value)
        if column.ends:
            low, high = (row[end] for end in column.ends)
            shown = value_text(value, low, high, column.places)
        return f"{word} {shown}".strip()

    return [
        "<br>".join(
            [f"<b>{plot_text(row[name])}</b>"]
            + [line(row, word, t) for word, t in values.items() if row[t] is not None]
        )
        for row in records(frame)
    ]


def value_text(
    value: float, low: float | None, high: float | None, digits: int | None = None
) -> str:
    """Write a value with its interval, such as ``3.1 (1.0 to 5.2)``."""
    ends = "interval unknown"
    if low is not None and high is not None:
        ends = f"{number(low, digits)} to {number(high, digits)}"
    return f"{number(value, digits)} ({ends})"


def error_bars(values: Iterable[Sequence[Any]]) -> dict[str, object]:
    """Return settings of error bars for (value, low, high); unknown ends have no bar."""
    ends = [(v if low is None else low, v, v if high is None else high) for v, low, high in values]
    return {
        "type": "data",
        "symmetric": False,
        "arrayminus": [value - low for low, value, _ in ends],
        "array": [high - value for _, value, high in ends],
        "color": MUTED.light,
        "thickness": 1.5,
        "width": 0,
    }


def plot_text(text: object) -> str:
    """Make text from the data safe inside a plot: cut, and without effect as Plotly mark-up."""
    cut = safe_text(text, MAX_NAME)
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def axis(title: str = "", **settings: object) -> dict[str, object]:
    """Return settings of an axis in the colors of the report."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13, "color": MUTED.light}},
        "gridcolor": GRID.light,
        "zerolinecolor": MUTED.light,
        "zerolinewidth": 1,
        "linecolor": GRID.light,
        "tickcolor": GRID.light,
        "ticks": "outside",
        "automargin": True,
    } | settings


def layout(height: int, **settings: object) -> go.Layout:
    """Return the layout of every plot; ``height`` is in pixels."""
    hover = {"bgcolor": NEUTRAL.light, "bordercolor": GRID.light, "align": "left"}
    defaults: dict[str, object] = {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": INK.light},
        "paper_bgcolor": SURFACE.light,
        "plot_bgcolor": SURFACE.light,
        "margin": {"l": 56, "r": 20, "t": 28, "b": 52},
        "showlegend": False,
        "hoverlabel": hover | {"font": {"family": FONT, "size": 13, "color": INK.light}},
        # Dragging scrolls the page on a phone; the tool bar has zooming.
        "dragmode": False,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED.light, "activecolor": INK.light},
    }
    return go.Layout(**(defaults | settings))


def panel_heading(text: str, left: float, top: float) -> dict[str, object]:
    """Return the heading of a panel: an annotation at the given place of the paper, flush left."""
    return {
        "text": plot_text(text),
        "x": left,
        "y": top,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 5,
        "showarrow": False,
        "font": {"size": 13, "color": MUTED.light},
    }
