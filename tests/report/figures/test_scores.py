"""Scores and retention against rank."""

import pytest
from report_studies import study_and_advice, with_arms
from synthetic_study import Truth

from rankscope.report.figures.against_rank import draw_against_rank
from rankscope.report.study_view import StudyView


def test_points_of_the_first_panel_are_the_arms_scores(view: StudyView) -> None:
    figure = draw_against_rank(view, "med")
    drawn = {
        (trace.hovertext[i].split("<b>")[1].split("</b>")[0]): trace.y[i]
        for trace in figure.plot.data
        if trace.mode == "lines+markers" and trace.yaxis == "y"
        for i in range(len(trace.x))
    }
    arms = {a.label: 100 * a.score.value for a in view.arms("med") if a.rank and a.score}
    assert drawn == pytest.approx(arms)
    full = view.best_full("med")
    lines = [t for t in figure.plot.data if t.text is not None and "full" in t.text]
    assert list(lines[0].y) == pytest.approx([100 * full.score.value] * 2)


def test_arms_that_no_line_over_rank_joins_stand_side_by_side() -> None:
    """One rank at two rates: each arm has a place and a name, and its interval as a bar."""
    side = StudyView(*study_and_advice(Truth(ranks=(8,), lrs=(1e-3, 3e-3), retention=())))
    drawn = draw_against_rank(side, "med")
    assert drawn.title == "Score and retention by arm, med"
    assert "Bars are 95 % intervals." in drawn.caption
    ticks = drawn.plot.layout.xaxis
    assert list(ticks.ticktext) == ["r=8 lr=0.001", "r=8 lr=0.003"]
    points = [trace for trace in drawn.plot.data if trace.error_y.array is not None]
    assert [trace.x for trace in points] == [(0.0,), (1.0,)] == [(v,) for v in ticks.tickvals]
    for arm, trace in zip(side.arms("med"), points, strict=False):
        low, high = trace.y[0] - trace.error_y.arrayminus[0], trace.y[0] + trace.error_y.array[0]
        assert (low, high) == pytest.approx(
            (100 * (arm.score.low or 0), 100 * (arm.score.high or 0))
        )
    # Names that are cut to the same text keep their places.
    renamed = with_arms(side, lambda _, arm: {"label": "x" * 80 + arm.label})
    cut = draw_against_rank(renamed, "med").plot
    assert len(set(cut.layout.xaxis.ticktext)) == 1
    assert cut.layout.xaxis.tickvals == (0.0, 1.0)
    # A second rank makes a line, and the axis is rank's again.
    line = StudyView(*study_and_advice(Truth(ranks=(8, 32), lrs=(1e-3,), retention=())))
    over_rank = draw_against_rank(line, "med")
    assert over_rank.title == "Score and retention against rank, med"
    assert list(over_rank.plot.layout.xaxis.ticktext) == ["8", "32"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({2: 0.0, 8: 0.0}, "0.0 % with r=2, 0.0 % with r=8."),
        ({2: 0.0, 8: 1.0}, "0.0 % with r=2, 100.0 % with r=8: highest with r=8."),
        ({8: 1.0}, "100.0 % with r=8."),
    ],
)
def test_only_a_score_above_others_is_called_the_highest(
    scores: dict[int, float], words: str
) -> None:
    truth = Truth(
        ranks=tuple(scores),
        accuracy=lambda rank, lr: scores.get(rank or 0, 0.5),
        seed_spread=0.0,
        num_items=20,
    )
    finding = draw_against_rank(StudyView(*study_and_advice(truth)), "med").finding
    assert finding.startswith(f"The score at lr=0.001 is {words} Full fine-tuning")


def test_names_of_lines_that_lie_close_stand_on_two_sides() -> None:
    """Where full fine-tuning forgets next to nothing its line lies on the base's."""

    def forgetting(rank: int | None, lr: float) -> float:
        return 0.0 if rank is None else 0.2

    for forgot, sides in (
        (forgetting, {"top left", "bottom left"}),
        (lambda rank, lr: 0.3 if rank is None else 0.1, {"top left"}),
    ):
        view = StudyView(*study_and_advice(Truth(forgetting=forgot)))
        plot = draw_against_rank(view, "med").plot
        lines = [t for t in plot.data if t.text is not None and t.yaxis == "y2"]
        found = {t.text[1]: t.textposition for t in lines}
        assert set(found) == {"full", "base"}
        assert set(found.values()) == sides
