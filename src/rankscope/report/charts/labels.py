"""Names beside points without overlap: the first free side of each point, most important first."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from rankscope.report.style import INK

# Nominal size of the plot in pixels: that of the plot beside the answer, the narrowest on a wide
# screen.
WIDTH, HEIGHT = 460.0, 350.0
CHARACTER, LINE, MARKER = 7.0, 15.0, 8.0
# Plotly pads its axes beyond the outermost point.
MARGIN = 20.0


class PointLabel(NamedTuple):
    """A name for the point (x, y), in the units of the axes."""

    x: float
    y: float
    text: str


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    right: float
    low: float
    high: float

    def overlaps(self, other: "Box") -> bool:
        """Whether two rectangles share any area."""
        return (
            self.right > other.left
            and other.right > self.left
            and self.high > other.low
            and other.high > self.low
        )


def place_labels(
    labels: Sequence[PointLabel],
    points: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[tuple[PointLabel, str]]:
    """Choose Plotly text positions for as many labels as fit.

    Args:
        labels: names with their points, most important first.
        points: every marker of the plot; no name covers one.
        x_range: the axis from left to right.
        y_range: the axis from bottom to top; for a reversed axis the larger number comes first.

    Returns:
        (label, ``textposition``) of the labels that fit.
    """

    def pixels(x: float, y: float) -> tuple[float, float]:
        width, height = x_range[1] - x_range[0] or 1.0, y_range[1] - y_range[0] or 1.0
        return (x - x_range[0]) / width * WIDTH, (y - y_range[0]) / height * HEIGHT

    taken = [
        Box(px - MARKER / 2, px + MARKER / 2, py - MARKER / 2, py + MARKER / 2)
        for px, py in (pixels(*point) for point in points)
    ]
    placed = []
    for label in labels:
        for position, box in _sides(*pixels(label.x, label.y), len(label.text) * CHARACTER):
            inside = box.left >= -MARGIN and box.right <= WIDTH + MARGIN
            inside = inside and box.low >= -MARGIN and box.high <= HEIGHT + MARGIN
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                placed.append((label, position))
                break
    return placed


def _sides(px: float, py: float, width: float) -> list[tuple[str, Box]]:
    half, gap = width / 2, MARKER
    return [
        ("top center", Box(px - half, px + half, py + gap, py + gap + LINE)),
        ("middle right", Box(px + gap, px + gap + width, py - LINE / 2, py + LINE / 2)),
        ("bottom center", Box(px - half, px + half, py - gap - LINE, py - gap)),
        ("middle left", Box(px - gap - width, px - gap, py - LINE / 2, py + LINE / 2)),
    ]


def add_labels(figure: go.Figure, placed: Sequence[tuple[PointLabel, str]]) -> None:
    """Draw placed labels as one text trace."""
    figure.add_scatter(
        x=[label.x for label, _ in placed],
        y=[label.y for label, _ in placed],
        # An invisible marker keeps the text clear of the visible one.
        mode="markers+text",
        marker={"size": 14, "opacity": 0},
        text=[label.text for label, _ in placed],
        textposition=[position for _, position in placed],
        textfont={"color": INK.light, "size": 12},
        hoverinfo="skip",
        cliponaxis=False,
    )
