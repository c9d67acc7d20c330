"""Panels of layer x head maps beside each other, a drop-down over what they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rankscope.report.charts.figure import Choice, axis, layout, name
from rankscope.report.style import BETTER, MANY, MUTED, NEUTRAL, NONE_YET, WORSE

Map = npt.NDArray[np.float64]
"""(layers, heads), NaN where unknown."""

CELL = 16
"""Pixels of a cell, both ways."""
NARROWEST = 110
"""Pixels of a panel."""
FLAT: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One map of several: what is said above it, and its place in the colours."""

    title: str
    values: Mapping[str, Map]
    """By label of the drop-down's entries; absent where there is nothing to show."""
    has_sign: bool = False
    scale: str = ""
    """Panels with the same one have one end of the colours; by default each has its own."""
    is_scaled_by_entry: bool = False
    """Each entry of the drop-down has ends of its own: tasks whose values are of other sizes."""

    @property
    def width(self) -> int:
        """Heads of the widest map."""
        return max((values.shape[1] for values in self.values.values()), default=1)

    @property
    def height(self) -> int:
        """Layers of the tallest map."""
        return max((values.shape[0] for values in self.values.values()), default=1)


def stacked(by_layer: Mapping[int, Sequence[float | None]]) -> Map | None:
    """Rows by layer, filled with NaN where a layer is absent or has fewer heads."""
    if not by_layer:
        return None
    width = max(map(len, by_layer.values()))
    found = np.full((max(by_layer) + 1, width), np.nan)
    for layer, values in by_layer.items():
        found[layer, : len(values)] = [np.nan if v is None else v for v in values]
    return found


def largest(values: Map) -> tuple[int, int]:
    """(layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def precision(dtype: str | None) -> str:
    """What the models ran in, and what that does to small values; empty where it is not known."""
    if dtype is None:
        return ""
    coarse = ", whose rounding alone moves costs by hundredths of a nat"
    return f"The models ran in {dtype}{'' if dtype == 'float32' else coarse}."


def panels_plot(panels: Sequence[Panel], labels: Sequence[str]) -> tuple[go.Figure, list[Choice]]:
    """The panels in one row, and the drop-down's entries."""
    widths = [max(NARROWEST, CELL * panel.width) for panel in panels]
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.03
    )
    tallest = max(panel.height for panel in panels)
    figure.update_layout(
        layout(
            130 + max(120, CELL * tallest),
            margin={"l": 48, "r": 16, "t": 40, "b": 52},
        )
    )
    choices = []
    reaches = reaches_of(panels)
    for place, label in enumerate(labels):
        traces = []
        for column, panel in enumerate(panels):
            if label not in panel.values:
                continue
            traces.append(len(figure.data))
            reach = reaches[scale_of(panel, label)] or 1.0
            figure.add_heatmap(
                **heat(panel.values[label], panel.has_sign, reach),
                visible=place == 0,
                row=1,
                col=column + 1,
            )
        choices.append(Choice(label, tuple(traces)))
    for column, panel in enumerate(panels):
        at = {"row": 1, "col": column + 1}
        figure.update_xaxes(axis("head", **FLAT), **at)
        figure.update_yaxes(
            axis("layer" if column == 0 else "", **FLAT, autorange="reversed"), **at
        )
        axis_name = "xaxis" if column == 0 else f"xaxis{column + 1}"
        figure.add_annotation(title_of(panel, figure.layout[axis_name].domain[0]))
    return figure, choices


def scale_of(panel: Panel, label: str) -> tuple[str, str]:
    """What maps share the ends of their colours by."""
    return panel.scale or panel.title, label if panel.is_scaled_by_entry else ""


def reaches_of(panels: Sequence[Panel]) -> dict[tuple[str, str], float]:
    """Largest absolute value of all maps that share their colours; 0 where none is known."""
    found: dict[tuple[str, str], float] = {}
    for panel in panels:
        for label, values in panel.values.items():
            most = 0.0 if np.isnan(values).all() else float(np.nanmax(np.abs(values)))
            key = scale_of(panel, label)
            found[key] = max(found.get(key, 0.0), most)
    return found


def min_width(panels: Sequence[Panel]) -> int:
    """Pixels below which the row of panels scrolls."""
    return 80 + sum(max(NARROWEST, CELL * panel.width) + 24 for panel in panels)


def heat(values: Map, has_sign: bool, reach: float) -> dict[str, Any]:
    """A heat map's settings: zero is pale, with a sign orange is below it and blue above."""
    return {
        "x": [str(head) for head in range(values.shape[1])],
        "y": [str(layer) for layer in range(values.shape[0])],
        "z": [[None if np.isnan(v) else float(v) for v in row] for row in values],
        "colorscale": [[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]]
        if has_sign
        else [[0, NONE_YET.light], [1, MANY.light]],
        "zmin": -reach if has_sign else 0,
        "zmax": reach,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{y}, head %{x}: %{z:.3~g}<extra></extra>",
        "showscale": False,
    }


def title_of(panel: Panel, start: float) -> dict[str, Any]:
    """A panel's heading, flush with its left side."""
    return {
        "text": name(panel.title),
        "x": start,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
        "showarrow": False,
        "font": {"size": 13, "color": MUTED.light},
    }
