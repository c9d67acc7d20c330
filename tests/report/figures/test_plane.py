"""The plane of gain and forgetting."""

import pytest
from report_studies import ordinary_study

from rankscope.report.figures import plane
from rankscope.report.study_view import StudyView


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*ordinary_study())


def test_plane_front_equals_the_definition(view: StudyView) -> None:
    points = {
        a.label: (a.gain.value, a.forgetting.value)
        for a in view.arms("med")
        if a.gain and a.forgetting
    }
    front = [arm.label for arm in plane.plane_front(view.arms("med"))]
    for label, (gain, fall) in points.items():
        beaten = any(g >= gain and f <= fall and (g, f) != (gain, fall) for g, f in points.values())
        assert (label in front) != beaten
    gains = [points[label][0] for label in front]
    assert gains == sorted(gains)


def test_the_good_corner_of_the_plane_is_top_right(view: StudyView) -> None:
    figure = plane.draw_plane(view, "med")
    assert figure.plot.layout.yaxis.autorange == "reversed"
    ring = [t for t in figure.plot.data if t.marker.symbol == "circle-open"]
    advice = view.advice("med")
    assert advice is not None
    assert advice.chosen is not None
    assert advice.chosen.forgetting is not None
    assert ring[0].y[0] == pytest.approx(100 * advice.chosen.forgetting.value)
