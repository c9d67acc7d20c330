"""Names beside points."""

import numpy as np

from rankscope.report.charts.labels import PointLabel, place_labels


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
