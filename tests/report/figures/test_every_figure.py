"""Laws of all figures, of a study; colors and names."""

import itertools
import json
import re

import numpy as np
import pytest
from report_studies import ORDINARY, compared_studies, whole_study

from rankscope.report.charts.figure import Figure
from rankscope.report.charts.labels import PointLabel, _place_labels as place_labels
from rankscope.report.page import figure_data
from rankscope.report.study_page import study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import FULL_COLOR, MUTED, dark_colors, rank_colors
from rankscope.tools.compare import (
    _compared_ranks as compared_ranks,
    _comparison_figures as comparison_figures,
)


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*whole_study())


def figures_of(view: StudyView) -> list[Figure]:
    """Every figure but those of an analysis without records, which say so instead, and the table
    of the answer's chart."""
    every = [figure for section in study_sections(view) for figure in section.figures]
    kept = [figure for figure in every if not figure.key.startswith("expected-gain")]
    return [figure for figure in kept if not figure.finding.startswith("No run has ")]


@pytest.fixture(scope="module")
def figures(view: StudyView) -> list[Figure]:
    return figures_of(view)


def assert_lawful(view: StudyView) -> None:
    """Every figure has a plot, a finding and numbers, and every color has a dark partner."""
    figures = figures_of(view)
    assert len({figure.key for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.plot is not None, figure.title
        assert figure.finding.endswith("."), figure.title
        assert len(figure.data), figure.title
        assert figure.data.columns.is_unique, figure.title
        assert set(figure.data.attrs["columns"]) <= set(figure.data.columns), figure.title
        assert figure.caption.endswith("."), figure.title
        assert {i for c in figure.choices for i in c.traces} <= set(range(len(figure.plot.data)))
    (pair,), ranks = compared_studies().pairs, compared_ranks(compared_studies())
    known = {"rgba(0,0,0,0)", *dark_colors([*view.ranks, 4]), *dark_colors(ranks)}
    every = (*figures, *comparison_figures(pair, 0, ranks))
    text = json.dumps([figure_data(figure) for figure in every])
    found = set(re.findall(r'"(#[0-9a-f]{6}|rgba?\([^)]*\))"', text))
    assert found <= known
    assert {FULL_COLOR.light, MUTED.light} <= found


def test_every_figure_keeps_the_laws(view: StudyView) -> None:
    assert_lawful(view)


def test_an_arm_has_one_color_in_every_figure(figures: list[Figure]) -> None:
    colors: dict[str, set[str]] = {}
    for figure in figures:
        for trace in figure.plot.data:
            shades = trace.marker.color if trace.type == "scatter" else None
            if isinstance(shades, tuple) and trace.hovertext:
                for text, shade in zip(trace.hovertext, shades, strict=True):
                    colors.setdefault(text.split("</b>")[0], set()).add(shade)
    assert len(colors) == len(ORDINARY.ranks) * len(ORDINARY.lrs)
    assert all(len(shades) == 1 for shades in colors.values())
    by_rank = {re.search(r"r=\d+", arm)[0]: shades for arm, shades in colors.items()}  # type: ignore[index]
    assert len(set(itertools.chain(*by_rank.values()))) == len(ORDINARY.ranks)


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
    size = 460.0, 350.0
    placed = place_labels(labels, points, (0.0, 1.0), (1.0, 0.0), size)
    assert 10 < len(placed) < 40
    # Centers in pixels of 460 x 350, half as wide as 7 a letter and 15 high, beside a mark of 8.
    away = {"top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0)}
    boxes = []
    for (x, y, text), side in placed:
        across, up = away.get(side, (-1, 0))
        width = 7 * len(text)
        boxes.append((460 * x + across * (8 + width / 2), 350 * (1 - y) + up * 15.5, width))
    for (x, y, width), (other_x, other_y, other) in itertools.combinations(boxes, 2):
        assert abs(x - other_x) >= (width + other) / 2 or abs(y - other_y) >= 15
    alone = place_labels(labels[:1], points[:1], (0.0, 1.0), (1.0, 0.0), size)
    assert alone == [(labels[0], "top center")]
    # A narrower plot has room for fewer.
    narrow = place_labels(labels, points, (0.0, 1.0), (1.0, 0.0), (200.0, 350.0))
    assert 5 < len(narrow) < len(placed)
    # Two names of one point cannot both stand above it.
    twins = [PointLabel(0.5, 0.5, "r=8"), PointLabel(0.5, 0.5, "full")]
    sides = [side for _, side in place_labels(twins, [], (0.0, 1.0), (0.0, 1.0), size)]
    assert len(set(sides)) == 2
