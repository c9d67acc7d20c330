"""The plane of gain and retention."""

import pytest
from report_studies import study_and_advice, with_arms
from synthetic_study import Truth

from rankscope.records import ArmSummary, Estimate
from rankscope.report.figures import plane
from rankscope.report.study_view import StudyView


def test_plane_front_equals_the_definition(view: StudyView) -> None:
    points = {
        a.label: (a.gain.value, a.forgetting.value)
        for a in view.arms("med")
        if a.gain and a.forgetting
    }
    front = view.front("med")
    for label, (gain, fall) in points.items():
        beaten = any(g >= gain and f <= fall and (g, f) != (gain, fall) for g, f in points.values())
        assert (label in front) != beaten
    gains = [points[label][0] for label in front]
    assert gains == sorted(gains)


def test_the_good_corner_of_the_plane_is_top_right(view: StudyView) -> None:
    figure = plane.draw_plane(view, "med")
    assert figure.plot.layout.yaxis.autorange != "reversed"
    assert figure.plot.layout.yaxis.title.text == "retention change, points"
    ring = [t for t in figure.plot.data if t.marker.symbol == "circle-open"]
    advice = view.advice("med")
    assert ring[0].y[0] == pytest.approx(-100 * advice.chosen.forgetting.value)


def test_a_loss_is_not_called_a_gain(view: StudyView) -> None:
    assert plane.draw_plane(view, "med").finding.startswith("The largest gain is +")
    worse = Truth(accuracy=lambda rank, lr: 0.1, num_items=60)
    figure = plane.draw_plane(StudyView(*study_and_advice(worse)), "med")
    assert figure.finding.startswith("No arm gained; the highest change is \N{MINUS SIGN}")


def test_of_equal_gains_that_with_the_better_retention_is_named(view: StudyView) -> None:
    """0.3004 and 0.3 are shown as the same number."""
    first = (("much", 0.3004, 0.5), ("little", 0.3, 0.1))

    def figures(place: int, arm: ArmSummary) -> dict[str, object]:
        label, *values = first[place] if place < len(first) else (arm.label, 0.0, 0.1)
        gain, fall = (Estimate(value=v, low=None, high=None, n=60, seeds=3) for v in values)
        return {"label": label, "gain": gain, "forgetting": fall}

    equal = with_arms(view, figures)
    assert plane.draw_plane(equal, "med").finding.startswith(
        "The largest gain is +30.0 points (little), with retention \N{MINUS SIGN}10.0 points; the "
        "highest change of retention is \N{MINUS SIGN}10.0 points (little)."
    )


def test_every_point_is_named_and_two_full_arms_by_their_rates() -> None:
    view = StudyView(*study_and_advice(Truth(full_lrs=(2e-4, 5e-4), num_items=60)))
    figure = plane.draw_plane(view, "med")
    texts = [text for trace in figure.plot.data for text in trace.text or ()]
    assert set(texts) == {"base", "r=2", "r=8", "r=32", "full 0.0002", "full 0.0005"}
