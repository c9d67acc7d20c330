"""Values with their intervals, one row per name, for comparisons with zero."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rankscope.report.charts.figure import (
    FLAT,
    Choice,
    Drawn,
    axis,
    error_bars,
    hover_texts,
    layout,
    plot_text,
    records,
)

ROW = 26  # Height of a row, pixels


def interval_rows(
    frame: pd.DataFrame,
    name: str,
    *,
    colors: Sequence[str],
    hollow: Sequence[bool],
    words: Sequence[str],
    x_title: str,
    layer: str | None = None,
    min_width: int = 0,
) -> Drawn:
    """Draw a mark at the ``difference`` of each row of a frame with its interval, top to bottom.

    ``words`` are further columns of the hover texts; the values of the column ``layer`` are the
    entries of the drop-down.
    """
    names = list(dict.fromkeys(map(plot_text, frame[name])))
    height = 110 + ROW * len(names)
    figure = go.Figure(layout=layout(height, margin={"l": 56, "r": 20, "t": 16, "b": 52}))
    hover = hover_texts(frame, name, {word: word for word in ("difference", *words)})
    rows = list(zip(records(frame), colors, hollow, hover, strict=True))
    entries = [""] if layer is None else list(dict.fromkeys(frame[layer]))
    for place, entry in enumerate(entries):
        shown = [row for row in rows if layer is None or row[0][layer] == entry]
        ends = [f"difference{end}" for end in ("", ", low", ", high")]
        values = [[row[end] for end in ends] for row, *_ in shown]
        figure.add_scatter(
            x=[middle for middle, *_ in values],
            y=[plot_text(row[name]) for row, *_ in shown],
            mode="markers",
            marker={
                "color": [color for _, color, _, _ in shown],
                "size": 10,
                "symbol": ["circle-open" if is_hollow else "circle" for *_, is_hollow, _ in shown],
            },
            error_x=error_bars(values),
            hoverinfo="text",
            hovertext=[text for *_, text in shown],
            visible=place == 0,
        )
    order: dict[str, Any] = {"categoryorder": "array", "categoryarray": names}
    figure.update_xaxes(axis(x_title))
    figure.update_yaxes(axis("", **FLAT, **order, range=[len(names) - 0.3, -0.7]))
    choices = [Choice(entry, (place,)) for place, entry in enumerate(entries)]
    return Drawn(plot=figure, choices=choices, min_width=min_width)
