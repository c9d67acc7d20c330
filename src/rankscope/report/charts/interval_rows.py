"""Values with their intervals, one row per name: for comparisons with zero."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

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
from rankscope.report.style import MUTED

ROW = 26
"""Height of a row, pixels."""


def interval_rows(
    frame: pd.DataFrame,
    name: str,
    value: str,
    *,
    colors: Sequence[str],
    hollow: Sequence[bool],
    words: Sequence[str],
    x_title: str,
    layer: str | None = None,
) -> Drawn:
    """Marks with error bars.

    Args:
        frame: one row per mark, with the three columns of its interval.
        name: column of the names; they are drawn from top to bottom.
        value: column of the values.
        colors: of the marks.
        hollow: marks that are not filled.
        words: further columns of the hover texts.
        x_title: of the axis.
        layer: column whose values are the entries of the drop-down.
    """
    names = list(dict.fromkeys(map(plot_text, frame[name])))
    height = 110 + ROW * len(names)
    figure = go.Figure(layout=layout(height, margin={"l": 56, "r": 20, "t": 16, "b": 52}))
    hover = hover_texts(frame, name, {word: word for word in (value, *words)})
    rows = list(zip(records(frame), colors, hollow, hover, strict=True))
    entries = [""] if layer is None else list(dict.fromkeys(frame[layer]))
    for place, entry in enumerate(entries):
        shown = [row for row in rows if layer is None or row[0][layer] == entry]
        values = [
            tuple(row[title] for title in (value, f"{value}, low", f"{value}, high"))
            for row, *_ in shown
        ]
        figure.add_scatter(
            x=[middle for middle, _, _ in values],
            y=[plot_text(row[name]) for row, *_ in shown],
            mode="markers",
            marker={
                "color": [color for _, color, _, _ in shown],
                "size": 10,
                "symbol": ["circle-open" if is_hollow else "circle" for *_, is_hollow, _ in shown],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [0.0 if high is None else high - at for at, _, high in values],
                "arrayminus": [0.0 if low is None else at - low for at, low, _ in values],
                "color": MUTED.light,
                "thickness": 1.5,
                "width": 0,
            },
            hoverinfo="text",
            hovertext=[text for *_, text in shown],
            visible=place == 0,
        )
    order: dict[str, Any] = {"categoryorder": "array", "categoryarray": names}
    figure.update_xaxes(axis(x_title))
    figure.update_yaxes(axis("", **FLAT, **order, range=[len(names) - 0.3, -0.7]))
    choices = [Choice(entry, (place,)) for place, entry in enumerate(entries)]
    return Drawn(plot=figure, choices=choices, min_width=560)
