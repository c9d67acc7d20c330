"""The laws of all figures, on those of heads."""

import pytest
from inspections import inspection
from report_studies import ordinary_study

from rankscope.advise.recommend import recommend
from rankscope.report.study_view import StudyView

from ...report.figures.test_every_figure import (
    figures,
    test_every_color_of_a_figure_has_a_dark_partner,
    test_every_figure_has_a_plot_a_finding_and_numbers,
)
from .records import ablation, inspect_heads, with_heads

__all__ = [
    "figures",
    "test_every_color_of_a_figure_has_a_dark_partner",
    "test_every_figure_has_a_plot_a_finding_and_numbers",
]


@pytest.fixture(scope="module", params=["trained", "given"])
def view(request: pytest.FixtureRequest) -> StudyView:
    study = (
        with_heads(ordinary_study()[0])
        if request.param == "trained"
        else inspect_heads(inspection("r4"), ablation("trained", 3.0))
    )
    return StudyView(study, recommend(study))
