"""A figure: a title, a finding in one sentence, one data frame, and a plot drawn from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rankscope.formatting import MAX_NAME, Unit, number, safe_text
from rankscope.records import Estimate
from rankscope.report.style import GRID, INK, MUTED, NEUTRAL, SURFACE

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

FLAT: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
"""Settings of a category axis."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a figure's drop-down: the indices of the traces it shows."""

    label: str
    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a page."""

    key: str
    """Unique within the page; letters, digits and hyphens."""
    title: str
    finding: str
    """What to see, computed from the data; without a plot, what is missing."""
    data: pd.DataFrame
    """Made by ``tidy``. The plot, its hover texts, the table and the CSV file all come from it."""
    plot: go.Figure | None = None
    caption: str = ""
    """How to read the plot."""
    choices: Sequence[Choice] = ()
    choice_name: str = "Arm"
    """What the drop-down selects."""
    min_width: int = 0
    """Pixels below which the plot scrolls sideways instead of shrinking."""


def tidy(
    columns: Mapping[str, Sequence[object]], digits: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """A frame that keeps values exactly as they are: whole numbers stay whole, unknown is None.

    Args:
        columns: values by column title; the titles are those of the table.
        digits: digits after the point by column title; other columns show three significant ones.
    """
    frame = pd.DataFrame(
        {title: pd.Series(values, dtype=object) for title, values in columns.items()}
    )
    frame.attrs["digits"] = dict(digits or {})
    return frame


def make_table(columns: Mapping[str, int | None], rows: Sequence[Sequence[object]]) -> pd.DataFrame:
    return tidy(
        {title: [row[i] for row in rows] for i, title in enumerate(columns)},
        {title: digits for title, digits in columns.items() if digits is not None},
    )


def interval_columns(
    title: str, estimates: Sequence[Estimate | None], unit: Unit
) -> dict[str, list[Any]]:
    """Value, lower and upper end of estimates in their unit: ``x``, ``x, low`` and ``x, high``."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * unit.scale

    return {
        title: [scaled(e.value) if e else None for e in estimates],
        f"{title}, low": [scaled(e.low) if e else None for e in estimates],
        f"{title}, high": [scaled(e.high) if e else None for e in estimates],
    }


def range_columns(title: str, samples: Sequence[Sequence[float | None]]) -> dict[str, list[Any]]:
    """Mean, smallest and largest of the known values of each row, titled as an interval."""
    known = [[v for v in row if v is not None and math.isfinite(v)] for row in samples]
    return {
        title: [fmean(row) if row else None for row in known],
        f"{title}, low": [min(row) if len(row) > 1 else None for row in known],
        f"{title}, high": [max(row) if len(row) > 1 else None for row in known],
    }


def interval_digits(title: str, digits: int) -> dict[str, int]:
    """Digits of the three columns of ``interval_columns``."""
    return {title: digits, f"{title}, low": digits, f"{title}, high": digits}


def is_known(value: object) -> bool:
    """Whether a cell holds a value."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of a frame as dictionaries; unknown is None."""
    for row in frame.itertuples(index=False, name=None):
        yield {
            title: value if is_known(value) else None
            for title, value in zip(frame.columns, row, strict=True)
        }


def hover_texts(frame: pd.DataFrame, name: str, values: Mapping[str, str]) -> list[str]:
    """A hover text for each row: its name in bold, then each value with its interval.

    Args:
        frame: made by ``tidy``.
        name: column of the name.
        values: column by the word in front of the value.
    """
    digits: Mapping[str, int] = frame.attrs.get("digits", {})

    def line(row: Mapping[str, Any], word: str, title: str) -> str:
        value = row[title]
        shown = plot_text(value) if isinstance(value, str) else number(value, digits.get(title))
        text = f"{word} {shown}".strip()
        if f"{title}, low" not in row:
            return text
        ends = [row[f"{title}, {end}"] for end in ("low", "high")]
        if None in ends:
            return f"{text} (interval unknown)"
        low, high = (number(end, digits.get(title)) for end in ends)
        return f"{text} ({low} to {high})"

    return [
        "<br>".join(
            [
                f"<b>{plot_text(row[name])}</b>",
                *(line(row, w, t) for w, t in values.items() if row[t] is not None),
            ]
        )
        for row in records(frame)
    ]


def plot_text(text: object) -> str:
    """Text from the data for use inside a plot: cut, and without effect as Plotly mark-up."""
    cut = safe_text(text, MAX_NAME)
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def axis(title: str = "", **settings: object) -> dict[str, object]:
    """Settings of an axis in the colors of the report."""
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
    """The layout of every plot; ``height`` in pixels."""
    hover = {"bgcolor": NEUTRAL.light, "bordercolor": GRID.light, "align": "left"}
    defaults: dict[str, object] = {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": INK.light},
        "paper_bgcolor": SURFACE.light,
        "plot_bgcolor": SURFACE.light,
        "margin": {"l": 56, "r": 20, "t": 28, "b": 52},
        "showlegend": False,
        "hoverlabel": hover | {"font": {"family": FONT, "size": 13, "color": INK.light}},
        # Dragging scrolls the page on a phone; zooming is in the tool bar.
        "dragmode": False,
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": MUTED.light,
            "activecolor": INK.light,
        },
    }
    return go.Layout(**(defaults | settings))


def panel_heading(text: str, left: float, top: float) -> dict[str, object]:
    """The heading of a panel: an annotation at the given place of the paper, flush left."""
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
