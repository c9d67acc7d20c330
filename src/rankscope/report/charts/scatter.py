"""Points in two dimensions with their intervals, joined to paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go

from rankscope.report.charts.figure import Choice, axis, hover_texts, layout
from rankscope.report.charts.labels import PointLabel, add_labels, place_labels
from rankscope.report.style import BASE, INK, MUTED, SURFACE, faded


@dataclass(frozen=True, slots=True)
class Path:
    """Points of a frame in order, joined by a line."""

    frame: pd.DataFrame
    """One row per point, with the columns of the two axes and ``arm``."""
    colors: tuple[str, ...]
    """Of the markers: one for each point, or a single one."""
    symbol: str = "circle"
    dash: str = "solid"
    line_color: str = ""
    """The color of the markers if empty."""
    sizes: tuple[float, ...] = (11.0,)
    from_base: bool = False
    """The line starts at the base, the origin."""
    end_name: str = ""
    """Written beside the last point if there is room."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Values of the hover text: column by word."""


def _add_path(figure: go.Figure, path: Path, x: str, y: str) -> int:
    """Draw a path; returns the index of its trace."""
    start: list[float] = [0.0] if path.from_base else []
    points = len(start) + len(path.frame)
    colors, sizes = (
        values[0] if len(values) == 1 else [*values[:1] * len(start), *values]
        for values in (path.colors, path.sizes)
    )
    if start and not isinstance(sizes, float):
        sizes = [0.0, *path.sizes]  # The base has a mark of its own.
    figure.add_scatter(
        x=[*start, *path.frame[x]],
        y=[*start, *path.frame[y]],
        mode="lines+markers",
        line={
            "color": path.line_color or path.colors[0],
            "width": 1.5 if path.from_base else 1,
            "dash": path.dash,
        },
        marker={
            "color": colors,
            "symbol": path.symbol,
            "size": sizes,
            "opacity": 1,
            "line": {"color": SURFACE.light, "width": 1},
        },
        hoverinfo="text",
        hovertext=[""] * (points - len(path.frame)) + hover_texts(path.frame, "arm", path.words),
        cliponaxis=False,
    )
    return len(figure.data) - 1


def _add_base(figure: go.Figure) -> int:
    """Mark the base at the origin; returns the index of its trace."""
    figure.add_scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"color": BASE.light, "symbol": "x", "size": 11},
        hoverinfo="text",
        hovertext="<b>base</b><br>untuned: the origin",
        cliponaxis=False,
    )
    return len(figure.data) - 1


def _add_ring(figure: go.Figure, x: float, y: float) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 22,
            "color": INK.light,
            "line": {"width": 2, "color": INK.light},
        },
        hoverinfo="skip",
        cliponaxis=False,
    )


def _add_crosses(figure: go.Figure, frame: pd.DataFrame, x: str, y: str, color: str) -> None:
    across: list[float | None] = []
    up: list[float | None] = []
    for row in frame.to_dict("records"):
        if row[f"{x}, low"] is not None:
            across += [row[f"{x}, low"], row[f"{x}, high"], None]
            up += [row[y], row[y], None]
        if row[f"{y}, low"] is not None:
            across += [row[x], row[x], None]
            up += [row[f"{y}, low"], row[f"{y}, high"], None]
    figure.add_scatter(
        x=across,
        y=up,
        mode="lines",
        line={"color": color, "width": 1},
        opacity=0.55,
        hoverinfo="skip",
    )


def _add_names(
    figure: go.Figure,
    labels: Sequence[PointLabel],
    points: Sequence[tuple[float, float]],
    reversed_y: bool,
    reach: Sequence[tuple[float, float]] = (),
) -> int:
    """Write the names for which there is room, most important first; returns the trace's index.

    ``reach`` are further points that the axes show, such as ends of intervals.
    """
    x, y = zip(*points, *reach, strict=True)
    upwards = (max(y), min(y)) if reversed_y else (min(y), max(y))
    add_labels(figure, place_labels(labels, points, (min(x), max(x)), upwards))
    return len(figure.data) - 1


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
    """Arms by gain and forgetting with their intervals, the front and the base; good is top right.

    Args:
        placed: one row per arm, with the arm as its index.
        axes: columns of gain and forgetting.
        paths: the points, joined by lines.
        crosses: color by arm of the arms whose intervals are drawn.
        front: arms joined by a broad pale line.
        ring: the arm with a ring around it.
        names: text by arm, most important first.
    """
    x, y = axes
    figure = go.Figure(layout=layout(400))
    figure.add_scatter(
        x=list(placed.loc[front, x]),
        y=list(placed.loc[front, y]),
        mode="lines",
        line={"color": faded(MUTED.light), "width": 14},
        hoverinfo="skip",
    )
    for color in dict.fromkeys(crosses.values()):
        arms = [arm for arm, of_arm in crosses.items() if of_arm == color]
        _add_crosses(figure, placed.loc[arms], x, y, color)
    for path in paths:
        _add_path(figure, path, x, y)
    _add_base(figure)
    if ring is not None:
        _add_ring(figure, placed.loc[ring, x], placed.loc[ring, y])
    labels = [PointLabel(placed.loc[a, x], placed.loc[a, y], text) for a, text in names.items()]
    labels.insert(1, PointLabel(0.0, 0.0, "base"))
    points = [(0.0, 0.0), *zip(placed[x], placed[y], strict=True)]
    reach = [
        (row[f"{x}, {end}"], row[f"{y}, {end}"])
        for row in placed.to_dict("records")
        for end in ("low", "high")
        if row[f"{x}, {end}"] is not None and row[f"{y}, {end}"] is not None
    ]
    _add_names(figure, labels, points, True, reach)
    _name_axes(figure, x, y, True)
    return figure


def _name_axes(figure: go.Figure, x_title: str, y_title: str, reversed_y: bool) -> None:
    """Set the axes of a plane; a reversed axis shows small values at the top."""
    figure.update_xaxes(axis(x_title))
    title = f"{y_title} (up: less)" if reversed_y else y_title
    figure.update_yaxes(axis(title, autorange="reversed" if reversed_y else True))


def paths_from_base(
    paths: Mapping[str, Sequence[Path]], focus: Sequence[str], x: str, y: str, reversed_y: bool
) -> tuple[go.Figure, tuple[Choice, ...]]:
    """Paths from the base on, with a drop-down between the focus arms and all arms.

    Args:
        paths: by arm.
        focus: arms that are shown first.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        reversed_y: the vertical axis shows large values at the bottom.
    """
    figure = go.Figure(layout=layout(440))
    traces = {arm: [_add_path(figure, p, x, y) for p in of_arm] for arm, of_arm in paths.items()}
    base = _add_base(figure)
    near = [arm for arm in paths if arm in focus]
    groups = {"all arms": [*near, *(arm for arm in paths if arm not in focus)]}
    if near and len(near) < len(paths):
        groups = {"arms of the answer": near, **groups}
    choices = []
    for label, arms in groups.items():
        shown = [path for arm in arms for path in paths[arm]]
        points = [(0.0, 0.0)]
        points += [at for p in shown for at in zip(p.frame[x], p.frame[y], strict=True)]
        ends = [
            PointLabel(p.frame[x].iloc[-1], p.frame[y].iloc[-1], p.end_name)
            for p in shown
            if p.end_name
        ]
        labels = [*ends[:1], PointLabel(0.0, 0.0, "base"), *ends[1:]]
        names = _add_names(figure, labels, points, reversed_y)
        of_arms = [trace for arm in arms for trace in traces[arm]]
        choices.append(Choice(label, (*of_arms, base, names)))
    _name_axes(figure, x, y, reversed_y)
    return figure, tuple(choices)
