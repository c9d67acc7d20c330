"""Colors of the report, and names beside points."""

import re

import numpy as np

from rankscope.report.charts.labels import PointLabel, place_labels
from rankscope.report.style import rank_colors


def luminance(color: str) -> float:
    """Relative luminance of an ``rgb(r, g, b)`` color (WCAG 2, definition of contrast)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_rank_colors_are_ordered_distinct_and_readable_in_both_modes() -> None:
    colors = list(rank_colors([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]).values())
    for mode, page in ((0, "rgb(254, 254, 254)"), (1, "rgb(22, 25, 29)")):
        levels = [luminance(color[mode]) for color in colors]
        assert levels == sorted(levels)
        assert len(set(levels)) == len(levels)
        ground = luminance(page)
        for level in levels:
            high, low = max(level, ground) + 0.05, min(level, ground) + 0.05
            # Graphics need less contrast than text: the marks also differ in shape and place.
            assert high / low > 1.9


def test_labels_never_overlap_and_the_first_is_kept() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform(0, 1, (40, 2))]
    labels = [PointLabel(x, y, f"r={i}") for i, (x, y) in enumerate(points)]
    placed = place_labels(labels, points, (0.0, 1.0), (1.0, 0.0))
    assert 10 < len(placed) < 40
    alone = place_labels(labels[:1], points[:1], (0.0, 1.0), (1.0, 0.0))
    assert alone == [(labels[0], "top center")]
    # A narrower plot has room for fewer.
    narrow = place_labels(labels, points, (0.0, 1.0), (1.0, 0.0), 200.0)
    assert 5 < len(narrow) < len(placed)
    # Two names of one point cannot both stand above it.
    twins = [PointLabel(0.5, 0.5, "r=8"), PointLabel(0.5, 0.5, "full")]
    sides = [side for _, side in place_labels(twins, points[:0], (0.0, 1.0), (0.0, 1.0))]
    assert len(set(sides)) == 2
