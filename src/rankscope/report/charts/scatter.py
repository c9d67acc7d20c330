"""Points in two dimensions, joined to paths; their intervals are crosses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rankscope.report.charts.figure import Choice, Drawn, axis, hover_texts, layout, records
from rankscope.report.charts.labels import PointLabel, add_labels
from rankscope.report.style import BASE_COLOR, INK, MUTED, SURFACE, faded

ORIGIN = (0.0, 0.0)  # The base


@dataclass(frozen=True, slots=True)
class Path:
    """Points of a frame in order, joined by a line."""

    frame: pd.DataFrame  # One row per point, with the columns of the two axes and ``arm``
    words: Mapping[str, str]  # Values of the hover text: column by word
    colors: Sequence[str]  # Colors of the markers: one for each point, or a single one
    style: tuple[str, str] = ("solid", "circle")  # Dash and symbol
    line_color: str = ""  # The color of the markers if empty
    sizes: Sequence[float] = (11.0,)  # Sizes of the markers: one for each point, or a single one
    end_name: str = ""  # Written beside the last point if there is room


def plane_plot(
    placed: pd.DataFrame,
    axes: tuple[str, str],
    paths: Sequence[Path],
    *,
    crosses: Mapping[str, str],
    front: Sequence[str],
    ring: str | None,
    names: Mapping[str, str],
) -> go.Figure:
    """Draw arms by gain and retention change, with a ring around one; the top right corner is best.

    Args:
        placed: one row per arm, with the arm as its index.
        axes: columns of ``placed``.
        crosses: colors of the drawn intervals.
        front: arms joined by a broad pale line.
        names: texts at the points, most important first.
    """
    x, y = axes
    figure = go.Figure(layout=layout(400))
    at = {arm: (placed.loc[arm, x], placed.loc[arm, y]) for arm in placed.index}
    pale = {"color": faded(MUTED.light), "width": 14}
    _add_line(figure, [at[arm] for arm in front], line=pale)
    rows = dict(zip(placed.index, records(placed), strict=True))
    for color in dict.fromkeys(crosses.values()):
        ends = [p for arm in crosses if crosses[arm] == color for p in _cross(rows[arm], x, y)]
        _add_line(figure, ends, line={"color": color, "width": 1}, opacity=0.55)
    for path in paths:
        _add_path(figure, path, x, y)
    _add_base(figure)
    if ring is not None:
        line = {"width": 2, "color": INK.light}
        marker = {"symbol": "circle-open", "size": 22, "color": INK.light, "line": line}
        _add_line(figure, [at[ring]], mode="markers", marker=marker, cliponaxis=False)
    labels = [PointLabel(*at[arm], text) for arm, text in names.items()]
    labels.insert(1, PointLabel(*ORIGIN, "base"))
    corners = [
        [(r[f"{x}, {end}"], r[f"{y}, {end}"]) for end in ("low", "high")] for r in rows.values()
    ]
    reach = [corner for pair in corners for corner in pair if None not in corner]
    _add_names(figure, labels, [ORIGIN, *at.values()], reach)
    _name_axes(figure, x, y)
    return figure


def paths_from_base(
    paths: Mapping[str, Sequence[Path]], focus: Sequence[str], x: str, y: str
) -> Drawn:
    """Draw paths from the base on by arm, with a drop-down between focus arms and all arms."""
    figure = go.Figure(layout=layout(440))
    traces = {
        arm: [_add_path(figure, p, x, y, True) for p in of_arm] for arm, of_arm in paths.items()
    }
    base = _add_base(figure)
    near = [arm for arm in paths if arm in focus]
    groups = {"all configurations": [*near, *(arm for arm in paths if arm not in focus)]}
    if near and len(near) < len(paths):
        groups = {"those of the answer": near, **groups}
    choices = []
    for label, arms in groups.items():
        shown = [path for arm in arms for path in paths[arm]]
        points = [list(zip(p.frame[x], p.frame[y], strict=True)) for p in shown]
        pairs = zip(shown, points, strict=True)
        labels = [PointLabel(*at[-1], path.end_name) for path, at in pairs if path.end_name]
        labels.insert(1, PointLabel(*ORIGIN, "base"))
        every = [ORIGIN, *(point for of_path in points for point in of_path)]
        names = _add_names(figure, labels, every)
        of_arms = [trace for arm in arms for trace in traces[arm]]
        choices.append(Choice(label, (*of_arms, base, names)))
    _name_axes(figure, x, y)
    return Drawn(plot=figure, choices=choices if len(choices) > 1 else ())


def _add_path(figure: go.Figure, path: Path, x: str, y: str, from_base: bool = False) -> int:
    """Draw a path, and return the index of its trace."""
    dash, symbol = path.style
    start = [0.0] * from_base
    sizes = path.sizes[0] if len(path.sizes) == 1 else [*start, *path.sizes]
    figure.add_scatter(
        x=[*start, *path.frame[x]],
        y=[*start, *path.frame[y]],
        mode="lines+markers",
        line={
            "color": path.line_color or path.colors[0],
            "width": 1.5 if from_base else 1,
            "dash": dash,
        },
        marker={
            "color": path.colors[0] if len(path.colors) == 1 else list(path.colors),
            "symbol": symbol,
            # The base has a mark of its own.
            "size": sizes,
            "opacity": 1,
            "line": {"color": SURFACE.light, "width": 1},
        },
        hoverinfo="text",
        hovertext=[""] * from_base + hover_texts(path.frame, "arm", path.words),
        cliponaxis=False,
    )
    return len(figure.data) - 1


def _add_base(figure: go.Figure) -> int:
    """Mark the base at the origin, and return the index of its trace."""
    marker = {"color": BASE_COLOR.light, "symbol": "x", "size": 11}
    text = {"hoverinfo": "text", "hovertext": "<b>base</b><br>untuned: the origin"}
    figure.add_scatter(x=[0], y=[0], mode="markers", marker=marker, cliponaxis=False, **text)
    return len(figure.data) - 1


def _add_line(figure: go.Figure, points: Sequence[tuple[Any, Any]], **style: Any) -> None:
    x, y = ([point[i] for point in points] for i in (0, 1))
    figure.add_scatter(x=x, y=y, hoverinfo="skip", **({"mode": "lines"} | style))


def _cross(row: Mapping[str, Any], x: str, y: str) -> list[tuple[Any, Any]]:
    """Return the intervals of both coordinates, with a gap after each."""
    ends: list[tuple[Any, Any]] = []
    if row[f"{x}, low"] is not None:
        ends += [(row[f"{x}, low"], row[y]), (row[f"{x}, high"], row[y]), (None, None)]
    if row[f"{y}, low"] is not None:
        ends += [(row[x], row[f"{y}, low"]), (row[x], row[f"{y}, high"]), (None, None)]
    return ends


def _add_names(
    figure: go.Figure,
    labels: Sequence[PointLabel],
    points: Sequence[tuple[float, float]],
    reach: Sequence[tuple[float, float]] = (),
) -> int:
    """Write the names for which there is room, most important first; returns the trace's index.

    ``reach`` are further points that the axes show, such as ends of intervals.
    """
    x, y = zip(*points, *reach, strict=True)
    add_labels(figure, labels, points, (min(x), max(x)), (min(y), max(y)))
    return len(figure.data) - 1


def _name_axes(figure: go.Figure, x_title: str, y_title: str) -> None:
    figure.update_xaxes(axis(x_title))
    figure.update_yaxes(axis(y_title))
