"""The figures of milder updates: what they say follows from the comparisons alone."""

import pytest

from rankscope.records import (
    MitigationComparison,
    ScaledPoint,
    ScalingCurve,
    SeedMean,
    TaskMitigation,
)
from rankscope.report.figures import scaling
from rankscope.report.study_view import StudyView

from .studies import ordinary_study


def comparison(label: str, value: float, p_holm: float | None) -> MitigationComparison:
    ends = (None, None) if p_holm is None else (value - 0.01, value + 0.01)
    return MitigationComparison(
        label=label,
        plain="plain",
        gain=0.3,
        forgetting=0.1,
        baseline=0.1 - value,
        difference=SeedMean(
            value=value, low=ends[0], high=ends[1], p=p_holm, p_holm=p_holm, seeds=3
        ),
        beyond=0,
    )


def view_with(*comparisons: MitigationComparison) -> StudyView:
    study, recommendation = ordinary_study()
    task = next(t.name for t in study.tasks if t.trained_on)
    points = tuple(
        ScaledPoint(
            strength=s,
            gain=0.4 * s,
            forgetting=0.2 * s**2,
            validation_gain=0.4 * s,
            validation_forgetting=0.2 * s**2,
            seeds=3,
        )
        for s in (0.0, 0.5, 1.0)
    )
    label = recommendation.advice[0].arms[0].label
    curve = ScalingCurve(label=label, kind="scale", points=points, chosen_strength=0.5)
    found = TaskMitigation(task=task, curves=(curve,), comparisons=comparisons)
    return StudyView(study, recommendation.model_copy(update={"mitigation": (found,)}))


def drawn(view: StudyView) -> tuple[scaling.Figure, ...]:
    return scaling.draw(view, view.training_tasks[0])


def test_a_study_without_scales_has_no_such_figure() -> None:
    assert drawn(StudyView(*ordinary_study())) == ()
    assert len(drawn(view_with())) == 1
    assert len(drawn(view_with(comparison("a", -0.1, 0.01)))) == 2


@pytest.mark.parametrize(
    ("comparisons", "said", "unsaid"),
    [
        # The largest difference is of one seed: it is not called the best, nor shown.
        (
            [comparison("lucky", -0.5, None), comparison("steady", -0.1, 0.01)],
            "shown to be better: 1, worse: 0. The largest shown: steady",
            "lucky",
        ),
        ([comparison("a", -0.3, 0.4), comparison("b", 0.1, 1.0)], "none of these", "largest"),
        ([comparison("a", 0.2, 0.01)], "shown to be better: 0, worse: 1", "largest"),
        ([comparison("a", -0.2, None)], "over fewer than three seeds", "shown to be"),
    ],
)
def test_nothing_is_called_better_that_is_not_shown(
    comparisons: list[MitigationComparison], said: str, unsaid: str
) -> None:
    finding = drawn(view_with(*comparisons))[1].finding
    assert said in finding
    assert unsaid not in finding


def test_the_table_has_every_comparison_with_its_p() -> None:
    rows = drawn(view_with(comparison("a", -0.1, 0.03), comparison("b", 0.1, None)))[1].table.rows
    assert [(row[0], row[8]) for row in rows] == [("a", 0.03), ("b", None)]


def test_markup_in_a_label_is_inert() -> None:
    figure = drawn(view_with(comparison("<img src=x onerror=alert(1)>", -0.1, 0.03)))[1]
    assert figure.plot is not None
    assert "<img" not in figure.plot.to_json()
