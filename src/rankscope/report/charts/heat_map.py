"""Heat maps, with a drop-down over their grids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from rankscope.formatting import MAX_NAME, Unit, signed
from rankscope.report.charts.figure import (
    FLAT,
    Choice,
    Drawn,
    axis,
    hover_texts,
    layout,
    plot_text,
    records,
)
from rankscope.report.charts.labels import CHARACTER
from rankscope.report.style import BETTER, INK, MANY, NEUTRAL, NONE_YET, SURFACE, WORSE


@dataclass(frozen=True, slots=True)
class Grid:
    """One heat map: frames of equal shape, with rows and columns in the order of drawing."""

    values: pd.DataFrame  # Unknown cells are NaN and stay empty
    signed: bool = False  # Orange below zero, blue above; else pale to violet from zero
    reach: float | None = None  # The end of the color scale; the largest value of this grid if None
    texts: pd.DataFrame | None = None  # Written in the cells
    hover: pd.DataFrame | None = None
    framed: Sequence[tuple[str, str]] = ()
    """Cells with a frame, as (row, column); only for plots of one panel."""

    @property
    def largest(self) -> float:
        """Largest known absolute value; 0 if none is known."""
        return float(np.nan_to_num(np.abs(self.values.to_numpy(dtype=float))).max(initial=0.0))

    def trace(self, gap: int, reach: float | None = None) -> dict[str, Any]:
        end = (self.reach or self.largest if reach is None else reach) or 1.0
        middle = [[0.5, NEUTRAL.light]] if self.signed else []
        low, high = (WORSE, BETTER) if self.signed else (NONE_YET, MANY)
        values = self.values.to_numpy(dtype=float)
        return {
            "x": [plot_text(column) for column in self.values.columns],
            "y": [plot_text(row) for row in self.values.index],
            "z": [[None if np.isnan(value) else float(value) for value in row] for row in values],
            "text": None if self.texts is None else self.texts.to_numpy().tolist(),
            "hoverinfo": "text",
            "hovertext": None if self.hover is None else self.hover.to_numpy().tolist(),
            "hovertemplate": "%{y}, %{x}: %{z:.3~g}<extra></extra>" if self.hover is None else None,
            "colorscale": [[0, low.light], *middle, [1, high.light]],
            "zmin": -end if self.signed else 0,
            "zmax": end,
            "xgap": gap,
            "ygap": gap,
            "showscale": False,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "ticks": ""},
        }


def pivot(
    frame: pd.DataFrame,
    axes: tuple[str, str],
    value: str,
    order: tuple[Sequence[object], Sequence[object]] | None = None,
) -> pd.DataFrame:
    """Make a grid from a tidy frame; by default rows and columns keep the order of the frame."""
    rows, columns = order or tuple(list(dict.fromkeys(frame[title])) for title in axes)
    cells = dict(zip(zip(frame[axes[0]], frame[axes[1]], strict=True), frame[value], strict=True))
    wide = [[cells.get((row, column)) for column in columns] for row in rows]
    return pd.DataFrame(wide, index=rows, columns=columns, dtype=object)


def change_grid(
    frame: pd.DataFrame,
    axes: tuple[str, str],
    value: str,
    unit: Unit,
    order: tuple[Sequence[str], Sequence[str]],
    *,
    absent: Callable[[str, str], str] = lambda row, column: "not scored",
    marks: Mapping[tuple[str, str], str] | None = None,
    reach: float = 0.0,
    framed: Sequence[tuple[str, str]] = (),
) -> Grid:
    """Make a grid of changes against the base, in brackets if the interval includes zero or is
    unknown.

    Args:
        frame: one row per cell, with the columns ``arm``, ``axes`` and those of the change.
        absent: returns the hover text of an empty cell.
        marks: texts of some empty cells.
        reach: largest value of other grids that share the color scale.
    """
    words = {title: title for title in axes if title not in ("arm", "row", "column")}
    texts = []
    for cell in records(frame):
        low, high = (cell.get(f"{value}, {end}") for end in ("low", "high"))
        clear = low is not None and high is not None and (low > 0 or high < 0)
        text = signed(cell[value] / unit.scale, unit)
        texts.append(text if clear or f"{value}, low" not in cell else f"({text})")
    cells = frame.assign(text=texts, hover=hover_texts(frame, "arm", words | {value: value}))
    values = pivot(cells, axes, value, order).astype(float)
    hover = pivot(cells, axes, "hover", order)
    for row, column in zip(*np.where(hover.isna()), strict=True):
        hover.iloc[row, column] = absent(order[0][row], order[1][column])
    end = max(reach, Grid(values).largest, 1.0 if unit.scale == 100 else 0.01)
    shown = pivot(cells, axes, "text", order).fillna("")
    for place, mark in (marks or {}).items():
        shown.loc[place] = hover.loc[place] = mark
    return Grid(values, True, end, shown, hover, framed)


def heat_map(
    grids: Mapping[str, Grid],
    *,
    row_height: int = 24,
    x_title: str = "",
    y_title: str = "",
    cell_format: str = "",
    cell_width: int = 60,
) -> Drawn:
    """Draw one panel with one grid for each entry of the drop-down.

    ``cell_format`` writes the values in the cells, such as ``%{z:.2~g}``, if a grid has no texts.
    Without either, the color scale is shown. The plot scrolls if a cell has no room for its text or
    ``cell_width`` pixels, or if the names of the rows have none.
    """
    tallest = max(len(grid.values) for grid in grids.values())
    columns = [str(column) for grid in grids.values() for column in grid.values.columns]
    # On a narrow screen Plotly turns long names and takes the room from the cells.
    longest = max(map(len, columns))
    names = 40 if longest > 8 else 0
    margin = {"l": 56, "r": 20, "t": 16, "b": 56 if x_title else 32}
    height = row_height * tallest + margin["b"] + names + 54
    figure = go.Figure(layout=layout(height, margin=margin))
    figure.update_xaxes(axis(x_title, **FLAT))
    figure.update_yaxes(axis(y_title, **FLAT, autorange="reversed"))
    choices = []
    for label, grid in grids.items():
        first = len(figure.data)
        shown = {"visible": first == 0}
        template = cell_format if grid.texts is None else "%{text}"
        trace = grid.trace(gap=2) | {"showscale": not template}
        figure.add_heatmap(**trace, texttemplate=template, textfont={"size": 12}, **shown)
        if grid.framed:
            _add_frames(figure, grid, **shown)
        choices.append(Choice(label, tuple(range(first, len(figure.data)))))
    texts = [text for trace in figure.data for row in trace.text or () for text in row]
    cell_width = max(cell_width, CHARACTER * max(map(len, texts), default=0) + 8)
    rows = max(len(plot_text(row)) for grid in grids.values() for row in grid.values.index)
    width = 54 + CHARACTER * (max(rows, 8) + (min(longest, MAX_NAME) // 2 if names else 0))
    width += cell_width * max(len(grid.values.columns) for grid in grids.values())
    return Drawn(plot=figure, choices=choices, min_width=width)


def heat_map_svg(values: pd.DataFrame, title: str) -> str:
    """Draw a map as a separate picture, from pale at zero to violet, with the number in each
    cell."""
    left, top, width, height = 60, 60, 110, 20
    largest, columns = Grid(values).largest or 1.0, list(values.columns)

    def text(x: float, y: float, words: object, fill: str = INK.light) -> str:
        return f'<text x="{x}" y="{y}" fill="{fill}">{escape(str(words))}</text>'

    parts = [text(8, 20, title)]
    parts += [text(left + width * i, 48, column) for i, column in enumerate(columns)]
    for row, label in enumerate(values.index):
        y = top + height * row
        parts.append(text(8, y + 14, label))
        for x, value in enumerate(values.iloc[row].astype(float)):
            if not np.isnan(value):
                (fill,) = sample_colorscale([NONE_YET.light, MANY.light], [value / largest])
                place = f'x="{left + width * x}" y="{y}" width="{width - 2}" height="{height - 2}"'
                ink = INK.light if value < largest / 2 else SURFACE.light
                number = text(left + width * x + 8, y + 14, f"{value:g}", ink)
                parts.append(f'<rect {place} fill="{fill}"/>{number}')
    size = f'width="{left + width * len(columns)}" height="{top + height * len(values)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    return "\n".join([f'{head} font-size="12">', *parts, "</svg>\n"])


def _add_frames(figure: go.Figure, grid: Grid, visible: bool) -> None:
    """Frame cells with overlaid number axes: category axes have no place between categories."""
    rows, columns = grid.values.shape
    hidden: dict[str, Any] = {"visible": False, "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis2={"overlaying": "x", "range": [-0.5, columns - 0.5], **hidden},
        yaxis2={"overlaying": "y", "range": [rows - 0.5, -0.5], **hidden},
    )
    x: list[float | None] = []
    y: list[float | None] = []
    for row, column in grid.framed:
        at = grid.values.index.get_loc(row), grid.values.columns.get_loc(column)
        x += [at[1] + side * 0.48 for side in (-1, 1, 1, -1, -1)] + [None]
        y += [at[0] + side * 0.46 for side in (-1, -1, 1, 1, -1)] + [None]
    line = {"color": INK.light, "width": 2}
    over = {"xaxis": "x2", "yaxis": "y2", "hoverinfo": "skip"}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, visible=visible, **over)
