"""Laws of all figures, of a study with everything and of an inspection."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from inspections import ablation, inspect_heads, inspection
from report_studies import ORDINARY, whole_study

from rankscope.advise.recommend import recommend
from rankscope.report.charts.figure import Figure
from rankscope.report.page import figure_data
from rankscope.report.study_page import study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import FULL_COLOR, MUTED, dark_colors


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*whole_study())


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


@pytest.fixture(scope="module")
def figures(view: StudyView) -> list[Figure]:
    return [figure for section in study_sections(view) for figure in section.figures]


@pytest.fixture(scope="module")
def inspected() -> list[Figure]:
    found = inspect_heads(inspection("r4"), ablation("trained", 3.0), ablation("other", 0.5))
    return [
        figure
        for section in study_sections(StudyView(found, recommend(found)))
        for figure in section.figures
    ]


def test_every_figure_has_a_plot_a_finding_and_numbers(
    figures: list[Figure], inspected: list[Figure]
) -> None:
    assert len({figure.key for figure in figures}) == len(figures)
    assert len({figure.key for figure in inspected}) == len(inspected)
    for figure in (*figures, *inspected):
        assert figure.plot is not None, figure.title
        assert figure.finding.endswith("."), figure.title
        assert len(figure.data), figure.title
        assert figure.data.columns.is_unique, figure.title
        assert set(figure.data.attrs["digits"]) <= set(figure.data.columns), figure.title
        assert figure.caption.endswith("."), figure.title
        assert {i for c in figure.choices for i in c.traces} <= set(range(len(figure.plot.data)))


def test_every_color_of_a_figure_has_a_dark_partner(
    view: StudyView, figures: list[Figure], inspected: list[Figure]
) -> None:
    known = dark_colors([*view.ranks, 4]).keys() | {"rgba(0,0,0,0)"}
    found = {
        text
        for figure in (*figures, *inspected)
        for text in strings(figure_data(figure))
        if re.fullmatch(r"#[0-9a-f]{6}|rgba?\([^)]*\)", text)
    }
    assert found <= known
    assert {FULL_COLOR.light, MUTED.light} <= found


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
