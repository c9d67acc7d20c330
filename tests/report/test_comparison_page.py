"""The page of a comparison: both answers, what differs, inert whatever the studies are called."""

import re
from dataclasses import replace

import pytest
from report_studies import compared_studies, ordinary_study

from rankscope.formatting import CONFIDENCES
from rankscope.report.style import FULL_COLOR, MUTED
from rankscope.tools.compare import (
    MAX_ARMS,
    StudyComparison,
    _compared_ranks as compared_ranks,
    _comparison_figures as comparison_figures,
    render_comparison,
)


@pytest.fixture(scope="module")
def found() -> StudyComparison:
    return compared_studies()


def test_the_page_has_both_answers_and_a_figure_for_every_training_task(
    found: StudyComparison,
) -> None:
    page = render_comparison(found, ordinary_study()[0].provenance)
    text = re.sub(r"\s+", " ", page.replace("&amp;", "&").replace("&#39;", "'"))
    for study in found.studies:
        for answer in study.answers:
            assert str(answer["verdict"]) in text
            confidence = str(answer["confidence"])
            assert f'"badge {confidence}">{CONFIDENCES[confidence]}</span>' in text
            assert f"{answer['chosen_label']}: expected net gain {answer['expected']}" in text
    (pair,) = found.pairs
    made = comparison_figures(pair, 0, compared_ranks(found))
    assert [f.title for f in made] == [
        "two minus one, untuned bases",
        "two minus one, arms trained on med",
        "two minus one, arms trained on law",
    ]
    # r=8 lr=0.001 and full fine-tuning are in both, scored on med, law, math and general.
    assert len(made[1].data) == 8
    assert [choice.label for choice in made[1].choices] == ["med", "law", "math", "general"]
    first = made[1].plot.data[0]
    cell = next(c for c in pair.cells if c.trained_on == c.tested_on == "med")
    assert first.x[0] == 100 * cell.difference.value
    assert first.error_x.array[0] == pytest.approx(
        100 * ((cell.difference.high or 0) - cell.difference.value)
    )


def test_a_method_without_a_rank_has_not_full_fine_tunings_color(found: StudyComparison) -> None:
    (pair,) = found.pairs
    (full,) = {c.arm for c in pair.cells if c.full}
    assert full.startswith("full")
    other = [c.model_copy(update={"full": False, "arm": "ia3"}) for c in pair.cells if c.full]
    made = comparison_figures(replace(pair, cells=(*pair.cells, *other)), 0, compared_ranks(found))
    drawn = made[1].plot.data[0]
    color = dict(zip(drawn.y, drawn.marker.color, strict=True))
    assert (color[full], color["ia3"]) == (FULL_COLOR.light, MUTED.light)


def test_how_many_arms_are_not_drawn_is_said(found: StudyComparison) -> None:
    (pair,) = found.pairs
    cell = next(c for c in pair.cells if c.arm)
    many = [cell.model_copy(update={"arm": f"arm {i}"}) for i in range(MAX_ARMS + 3)]
    (made,) = comparison_figures(replace(pair, cells=tuple(many)), 0, compared_ranks(found))
    assert made.finding.endswith(" 3 arms are only in the table.")
    assert len(made.plot.data[0].y) == MAX_ARMS
