"""Names beside points without overlap: the first free side of each point, most important first."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from rankscope.report.style import INK

# Nominal width in pixels: that of the plot beside the answer, the narrowest on a wide screen.
# Plotly pads its axes beyond the outermost point by about MARGIN.
WIDTH, MARGIN = 460.0, 20.0
NARROW_WIDTH = 200.0  # On a phone
LINE, MARKER = 15.0, 8.0
CHARACTER = 7  # Width of a letter


class PointLabel(NamedTuple):
    """A name for the point (x, y), in the units of the axes."""

    x: float
    y: float
    text: str


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> "_Box":
        return cls(x - width / 2, x + width / 2, y - height / 2, y + height / 2)

    def overlaps(self, other: "_Box") -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.high <= other.low or other.high <= self.low)


def _place_labels(
    labels: Sequence[PointLabel],
    points: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    plot_size: tuple[float, float],
) -> list[tuple[PointLabel, str]]:
    """Choose Plotly text positions for as many labels as fit, most important first.

    No label covers one of ``points``. The ranges are from left to right and from bottom to top;
    ``plot_size`` is in pixels. Returns (label, ``textposition``).
    """

    def pixels(x: float, y: float) -> tuple[float, float]:
        width, height = x_range[1] - x_range[0] or 1.0, y_range[1] - y_range[0] or 1.0
        return (x - x_range[0]) / width * plot_width, (y - y_range[0]) / height * plot_height

    plot_width, plot_height = plot_size
    plot = _Box(-MARGIN, plot_width + MARGIN, -MARGIN, plot_height + MARGIN)
    taken = [_Box.around(*pixels(*point), MARKER, MARKER) for point in points]
    placed = []
    for label in labels:
        x, y = pixels(label.x, label.y)
        width = len(label.text) * CHARACTER
        across, up = MARKER + width / 2, MARKER + LINE / 2
        sides = {
            "top center": (x, y + up),
            "middle right": (x + across, y),
            "bottom center": (x, y - up),
            "middle left": (x - across, y),
        }
        for position, center in sides.items():
            box = _Box.around(*center, width, LINE)
            inside = box.left >= plot.left and box.right <= plot.right
            inside = inside and box.low >= plot.low and box.high <= plot.high
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                placed.append((label, position))
                break
    return placed


def add_labels(
    figure: go.Figure,
    labels: Sequence[PointLabel],
    points: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    """Write the labels for which there is room; a narrow screen gets other labels."""
    margin = figure.layout.margin
    height = figure.layout.height - margin.t - margin.b

    def texts(plot_width: float) -> dict[str, list[object]]:
        placed = _place_labels(labels, points, x_range, y_range, (plot_width, height))
        return {
            "x": [label.x for label, _ in placed],
            "y": [label.y for label, _ in placed],
            "text": [label.text for label, _ in placed],
            "textposition": [position for _, position in placed],
        }

    figure.add_scatter(
        **texts(WIDTH),
        meta={"narrow": texts(NARROW_WIDTH)},
        # An invisible marker keeps the text clear of the visible one.
        mode="markers+text",
        marker={"size": 14, "opacity": 0},
        textfont={"color": INK.light, "size": 12},
        hoverinfo="skip",
        cliponaxis=False,
    )
