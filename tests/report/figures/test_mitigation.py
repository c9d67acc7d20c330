"""Scaled variants and mitigations: what is written follows from the comparisons alone."""

import pytest
from report_studies import cells, ordinary_study, with_mitigation

from rankscope.records import Estimate, MitigationComparison
from rankscope.report.charts.figure import Figure
from rankscope.report.figures import mitigation, scaled_variants
from rankscope.report.study_view import StudyView


def comparison(label: str, value: float, p_holm: float | None) -> MitigationComparison:
    ends = (None, None) if p_holm is None else (value - 0.01, value + 0.01)
    return MitigationComparison(
        label=label,
        plain="plain",
        gain=0.3,
        forgetting=0.1,
        baseline=0.1 - value,
        difference=Estimate(
            value=value, low=ends[0], high=ends[1], p=p_holm, p_holm=p_holm, n=100, seeds=3
        ),
        beyond=0,
    )


def view_with(*comparisons: MitigationComparison) -> StudyView:
    study, advice = ordinary_study()
    return StudyView(study, with_mitigation(advice, *comparisons))


def compared(*comparisons: MitigationComparison) -> Figure:
    view = view_with(*comparisons)
    return mitigation.draw_mitigation(view, view.training_tasks[0])


def test_a_study_without_scales_has_no_such_figure() -> None:
    plain, scaled = StudyView(*ordinary_study()), view_with()
    task = plain.training_tasks[0]
    assert (
        scaled_variants.draw_scaled_variants(plain, task),
        mitigation.draw_mitigation(plain, task),
    ) == (None, None)
    assert scaled_variants.draw_scaled_variants(scaled, task) is not None
    assert mitigation.draw_mitigation(scaled, task) is None


@pytest.mark.parametrize(
    ("comparisons", "said", "unsaid"),
    [
        # The largest difference is of one seed: it is not called the best, nor shown.
        (
            [comparison("lucky", -0.5, None), comparison("steady", -0.1, 0.01)],
            "significantly better: 1, worse: 0. The largest improvement: steady",
            "lucky",
        ),
        ([comparison("a", -0.3, 0.4), comparison("b", 0.1, 1.0)], "none is significant", "largest"),
        ([comparison("a", 0.2, 0.01)], "significantly better: 0, worse: 1", "largest"),
        ([comparison("a", -0.2, None)], "over fewer than three seeds", "better:"),
    ],
)
def test_nothing_is_called_better_that_is_not_shown(
    comparisons: list[MitigationComparison], said: str, unsaid: str
) -> None:
    finding = compared(*comparisons).finding
    assert said in finding
    assert unsaid not in finding


def test_the_table_has_every_comparison_with_its_p() -> None:
    rows = cells(compared(comparison("a", -0.1, 0.03), comparison("b", 0.1, None)))
    assert [(row[0], row[8]) for row in rows] == [("a", 0.03), ("b", None)]


def test_markup_in_a_label_is_inert() -> None:
    figure = compared(comparison("<img src=x onerror=alert(1)>", -0.1, 0.03))
    assert "<img" not in figure.plot.to_json()
