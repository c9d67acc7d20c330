"""Values with their intervals, one row per name: for comparisons with zero."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from rankscope.report.charts.figure import FLAT, Choice, axis, layout, plot_text
from rankscope.report.style import MUTED

ROW = 26
"""Height of a row, pixels."""


class IntervalRow(NamedTuple):
    """One mark."""

    name: str
    value: float
    low: float | None
    high: float | None
    color: str
    hover: str
    hollow: bool = False


def interval_rows(
    layers: Mapping[str, Sequence[IntervalRow]], names: Sequence[str], x_title: str
) -> tuple[go.Figure, tuple[Choice, ...]]:
    """Marks with error bars, with a drop-down over ``layers``; ``names`` from top to bottom."""
    figure = go.Figure(
        layout=layout(110 + ROW * len(names), margin={"l": 56, "r": 20, "t": 16, "b": 52})
    )
    for place, rows in enumerate(layers.values()):
        figure.add_scatter(
            x=[row.value for row in rows],
            y=[plot_text(row.name) for row in rows],
            mode="markers",
            marker={
                "color": [row.color for row in rows],
                "size": 10,
                "symbol": ["circle-open" if row.hollow else "circle" for row in rows],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [0.0 if row.high is None else row.high - row.value for row in rows],
                "arrayminus": [0.0 if row.low is None else row.value - row.low for row in rows],
                "color": MUTED.light,
                "thickness": 1.5,
                "width": 0,
            },
            hoverinfo="text",
            hovertext=[row.hover for row in rows],
            visible=place == 0,
        )
    order: dict[str, Any] = FLAT | {
        "categoryorder": "array",
        "categoryarray": [plot_text(name) for name in names],
        "range": [len(names) - 0.3, -0.7],
    }
    figure.update_xaxes(axis(x_title))
    figure.update_yaxes(axis("", **order))
    return figure, tuple(Choice(label, (place,)) for place, label in enumerate(layers))
