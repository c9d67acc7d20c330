"""Scores and retention against rank."""

import pytest
from report_studies import ordinary_study, study_and_advice
from synthetic_study import Truth

from rankscope.report.figures import in_domain, retention
from rankscope.report.study_view import StudyView


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*ordinary_study())


def test_in_domain_points_are_the_arms_scores(view: StudyView) -> None:
    figure = in_domain.draw_in_domain(view, "med")
    drawn = {
        (trace.hovertext[i].split("<b>")[1].split("</b>")[0]): trace.y[i]
        for trace in figure.plot.data
        if trace.mode == "lines+markers"
        for i in range(len(trace.x))
    }
    arms = {a.label: 100 * a.score.value for a in view.arms("med") if a.rank and a.score}
    assert drawn == pytest.approx(arms)
    full = view.best_full("med")
    lines = [t for t in figure.plot.data if t.text is not None and "full" in t.text]
    assert full is not None
    assert full.score is not None
    assert list(lines[0].y) == pytest.approx([100 * full.score.value] * 2)


def test_arms_that_no_line_over_rank_joins_stand_side_by_side() -> None:
    """One rank at two rates: each arm has a place and a name, and its interval as a bar."""
    side = StudyView(*study_and_advice(Truth(ranks=(8,), lrs=(1e-3, 3e-3))))
    drawn = in_domain.draw_in_domain(side, "med")
    assert drawn.title == "In-domain score by arm, med"
    assert "Bars are 95 % intervals." in drawn.caption
    assert drawn.plot is not None
    ticks = drawn.plot.layout.xaxis
    assert list(ticks.ticktext) == ["r=8 lr=0.001", "r=8 lr=0.003"]
    points = [trace for trace in drawn.plot.data if trace.error_y.array is not None]
    assert [trace.x for trace in points] == [(0.0,), (1.0,)] == [(v,) for v in ticks.tickvals]
    for arm, trace in zip(side.arms("med"), points, strict=False):
        assert arm.score is not None
        low, high = trace.y[0] - trace.error_y.arrayminus[0], trace.y[0] + trace.error_y.array[0]
        assert (low, high) == pytest.approx(
            (100 * (arm.score.low or 0), 100 * (arm.score.high or 0))
        )
    # Names that are cut to the same text keep their places.
    (told,) = side.recommendation.advice
    arms = tuple(a.model_copy(update={"label": "x" * 80 + a.label}) for a in told.arms)
    renamed = side.recommendation.model_copy(
        update={"advice": (told.model_copy(update={"arms": arms}),)}
    )
    cut = in_domain.draw_in_domain(StudyView(side.study, renamed), "med").plot
    assert cut is not None
    assert len(set(cut.layout.xaxis.ticktext)) == 1
    assert cut.layout.xaxis.tickvals == (0.0, 1.0)
    # A second rank makes a line, and the axis is rank's again.
    line = StudyView(*study_and_advice(Truth(ranks=(8, 32), lrs=(1e-3,))))
    over_rank = in_domain.draw_in_domain(line, "med")
    assert over_rank.title == "In-domain score against rank, med"
    assert over_rank.plot is not None
    assert list(over_rank.plot.layout.xaxis.ticktext) == ["8", "32"]


def test_names_of_lines_that_lie_close_stand_on_two_sides() -> None:
    """Where full fine-tuning forgets next to nothing its line lies on the base's."""

    def forgetting(rank: int | None, lr: float) -> float:
        return 0.0 if rank is None else 0.2

    for forgot, sides in (
        (forgetting, {"top left", "bottom left"}),
        (lambda rank, lr: 0.3 if rank is None else 0.1, {"top left"}),
    ):
        view = StudyView(*study_and_advice(Truth(forgetting=forgot)))
        plot = retention.draw_retention(view, "med").plot
        assert plot is not None
        found = {t.text[1]: t.textposition for t in plot.data if t.text is not None}
        assert set(found) == {"full", "base"}
        assert set(found.values()) == sides
