"""Heat maps: one panel or several side by side, with a drop-down over what they show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankscope.formatting import Unit, signed
from rankscope.report.charts.figure import (
    FLAT,
    Choice,
    axis,
    hover_texts,
    is_known,
    layout,
    panel_heading,
    plot_text,
    records,
)
from rankscope.report.style import BETTER, INK, MANY, NEUTRAL, NONE_YET, WORSE

SIGNED = [[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]]
"""Orange below zero, blue above."""
AMOUNT = [[0, NONE_YET.light], [1, MANY.light]]


@dataclass(frozen=True, slots=True)
class Grid:
    """One heat map: frames of equal shape, rows and columns in the order they are drawn."""

    values: pd.DataFrame
    """Unknown cells are NaN and stay empty."""
    signed: bool = False
    """The color scale is centered at zero."""
    reach: float | None = None
    """The end of the color scale; the largest value of this grid if None."""
    texts: pd.DataFrame | None = None
    """Written in the cells."""
    hover: pd.DataFrame | None = None
    framed: tuple[tuple[int, int], ...] = ()
    """(row, column) of the cells with a frame; only for plots of one panel."""

    @property
    def largest(self) -> float:
        """The largest known absolute value; 0 if none is known."""
        values = np.abs(self.values.to_numpy(dtype=float))
        return 0.0 if np.isnan(values).all() else float(np.nanmax(values))


def pivot(
    frame: pd.DataFrame, rows: str, columns: str, value: str, fill: object = np.nan
) -> pd.DataFrame:
    """A grid from a tidy frame, rows and columns in the order of their first appearance."""
    ordered = [list(dict.fromkeys(frame[title])) for title in (rows, columns)]
    wide = frame.pivot(index=rows, columns=columns, values=value)
    return wide.reindex(index=ordered[0], columns=ordered[1]).map(
        lambda cell: cell if is_known(cell) else fill
    )


def change_grid(
    frame: pd.DataFrame,
    axes: tuple[str, str],
    value: str,
    unit: Unit,
    order: tuple[Sequence[str], Sequence[str]],
    *,
    sign: int = 1,
    absent: Callable[[str, str], str] = lambda row, column: "not scored",
    reach: float = 0.0,
    framed: tuple[tuple[int, int], ...] = (),
) -> Grid:
    """Changes against the base: in brackets if the interval includes zero or is unknown.

    Args:
        frame: one row per cell, with its column ``arm`` and the columns of the change.
        axes: columns of the rows and of the columns of the grid.
        value: title of the change, in its unit.
        unit: of the change.
        order: rows and columns as drawn.
        sign: -1 if more is worse.
        absent: hover text of an empty cell.
        reach: the largest value of other grids that share the color scale.
        framed: cells with a frame.
    """
    rows, columns = order
    ends = [f"{value}, low", f"{value}, high"]
    words = {title: title for title in axes if title not in ("arm", "row", "column")}
    texts = []
    for cell in records(frame):
        low, high = (cell.get(end) for end in ends)
        clear = low is not None and high is not None and (low > 0 or high < 0)
        text = signed(cell[value] / unit.scale, unit)
        texts.append(text if clear or ends[0] not in cell else f"({text})")
    cells = frame.assign(text=texts, hover=hover_texts(frame, "arm", words | {value: value}))

    def wide(title: str) -> pd.DataFrame:
        return cells.pivot(index=axes[0], columns=axes[1], values=title).reindex(
            index=rows, columns=columns
        )

    hover = wide("hover").astype(object)
    for row in rows:
        for column in columns:
            if not is_known(hover.loc[row, column]):
                hover.loc[row, column] = absent(row, column)
    values = wide(value).astype(float)
    reach = max(reach, Grid(values).largest, 1.0 if unit.scale == 100 else 0.01)
    return Grid(sign * values, True, reach, wide("text").fillna(""), hover, framed)


def heat_map(
    grids: Mapping[str, Grid], *, row_height: int = 24, x_title: str = "", y_title: str = "",
    cell_format: str = "",
    margin: Mapping[str, int] | None = None,
) -> tuple[go.Figure, tuple[Choice, ...]]:  # fmt: skip
    """One panel with one grid for each entry of the drop-down.

    Args:
        grids: by label of the entry.
        row_height: in pixels.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        cell_format: writes the values in the cells, such as ``%{z:.2~g}``, if a grid has no texts.
        margin: margins that differ from the usual ones.
    """
    tallest = max(len(grid.values) for grid in grids.values())
    margins = {"l": 56, "r": 20, "t": 16, "b": 56} | dict(margin or {})
    height = row_height * tallest + margins["t"] + margins["b"] + 38
    figure = go.Figure(layout=layout(height, margin=margins))
    figure.update_xaxes(axis(x_title, **FLAT))
    figure.update_yaxes(axis(y_title, **FLAT, autorange="reversed"))
    traces: dict[str, list[int]] = {}
    for place, (label, grid) in enumerate(grids.items()):
        traces[label] = [len(figure.data)]
        template = "%{text}" if grid.texts is not None else cell_format
        figure.add_heatmap(
            **_settings(grid, gap=2),
            texttemplate=template,
            textfont={"size": 12},
            visible=place == 0,
        )
        if grid.framed:
            traces[label].append(len(figure.data))
            _add_frames(figure, grid, visible=place == 0)
    return figure, tuple(Choice(label, tuple(places)) for label, places in traces.items())


def _settings(grid: Grid, gap: int) -> dict[str, Any]:
    reach = (grid.largest if grid.reach is None else grid.reach) or 1.0
    values = grid.values
    hover: dict[str, Any] = {"hovertemplate": "%{y}, %{x}: %{z:.3~g}<extra></extra>"}
    if grid.hover is not None:
        hover = {"hoverinfo": "text", "hovertext": grid.hover.to_numpy().tolist()}
    return {
        "x": [plot_text(column) for column in values.columns],
        "y": [plot_text(row) for row in values.index],
        "z": [[float(v) if is_known(v) else None for v in row] for row in values.to_numpy()],
        "text": None if grid.texts is None else grid.texts.to_numpy().tolist(),
        "colorscale": SIGNED if grid.signed else AMOUNT,
        "zmin": -reach if grid.signed else 0,
        "zmax": reach,
        "xgap": gap,
        "ygap": gap,
        "showscale": False,
        **hover,
    }


def _add_frames(figure: go.Figure, grid: Grid, visible: bool) -> None:
    """Frame cells: category axes have no place between categories, so number axes overlay them."""
    rows, columns = grid.values.shape
    hidden: dict[str, Any] = {"visible": False, "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis2={"overlaying": "x", "range": [-0.5, columns - 0.5], **hidden},
        yaxis2={"overlaying": "y", "range": [rows - 0.5, -0.5], **hidden},
    )
    x: list[float | None] = []
    y: list[float | None] = []
    for row, column in grid.framed:
        x += [column + side * 0.48 for side in (-1, 1, 1, -1, -1)] + [None]
        y += [row + side * 0.46 for side in (-1, -1, 1, 1, -1)] + [None]
    figure.add_scatter(
        x=x,
        y=y,
        xaxis="x2",
        yaxis="y2",
        mode="lines",
        line={"color": INK.light, "width": 2},
        hoverinfo="skip",
        visible=visible,
    )


CELL = 16
"""Size of a cell of a panel, pixels."""
NARROWEST = 110
"""Least width of a panel, pixels."""


@dataclass(frozen=True, slots=True)
class MapPanel:
    """One of several maps side by side."""

    title: str
    grids: Mapping[str, Grid]
    """By entry of the drop-down; an entry is absent if there is nothing to show."""
    scale: str = ""
    """Panels with the same name share the end of the color scale; by default each has its own."""
    scaled_by_entry: bool = False
    """Each entry of the drop-down has its own end of the color scale."""

    def scale_of(self, entry: str) -> tuple[str, str]:
        """Maps with equal results share the end of the color scale."""
        return self.scale or self.title, entry if self.scaled_by_entry else ""

    @property
    def width(self) -> int:
        """In pixels."""
        return max(NARROWEST, *(CELL * len(grid.values.columns) for grid in self.grids.values()))


def panels_width(panels: Sequence[MapPanel]) -> int:
    """Pixels below which a row of panels scrolls."""
    return 80 + sum(panel.width + 24 for panel in panels)


def map_panels(
    panels: Sequence[MapPanel],
    entries: Sequence[str],
    x_title: str = "head",
    y_title: str = "layer",
) -> tuple[go.Figure, tuple[Choice, ...]]:
    """Panels in a row, with a drop-down over ``entries`` that changes all of them."""
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        column_widths=[panel.width for panel in panels],
        horizontal_spacing=0.03,
    )
    tallest = max(len(grid.values) for panel in panels for grid in panel.grids.values())
    height = 130 + max(120, CELL * tallest)
    figure.update_layout(layout(height, margin={"l": 48, "r": 16, "t": 40, "b": 52}))
    reaches: dict[tuple[str, str], float] = {}
    for panel in panels:
        for entry, grid in panel.grids.items():
            scale = panel.scale_of(entry)
            reaches[scale] = max(reaches.get(scale, 0.0), grid.largest)
    choices = []
    for place, entry in enumerate(entries):
        first = len(figure.data)
        for column, panel in enumerate(panels, start=1):
            if entry in panel.grids:
                grid = panel.grids[entry]
                settings = _settings(grid, gap=1)
                reach = reaches[panel.scale_of(entry)] or 1.0
                settings |= {"zmin": -reach if grid.signed else 0, "zmax": reach}
                settings["hovertemplate"] = (
                    f"{y_title} %{{y}}, {x_title} %{{x}}: %{{z:.3~g}}<extra></extra>"
                )
                figure.add_heatmap(**settings, visible=place == 0, row=1, col=column)
        choices.append(Choice(entry, tuple(range(first, len(figure.data)))))
    for column, panel in enumerate(panels, start=1):
        at = {"row": 1, "col": column}
        figure.update_xaxes(axis(x_title, **FLAT), **at)
        figure.update_yaxes(
            axis(y_title if column == 1 else "", **FLAT, autorange="reversed"), **at
        )
        domain = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        figure.add_annotation(panel_heading(panel.title, domain[0], 1))
    return figure, tuple(choices)
