"""A figure is one file: it is on the page with its sentence, plot and table."""

from collections.abc import Callable
from types import ModuleType

from report_studies import ordinary_study

from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView


def test_a_figure_of_ones_own_is_on_the_page(load_extension: Callable[[str], ModuleType]) -> None:
    load_extension("figures")
    page = render_study(StudyView(*ordinary_study()))
    for task in (0, 1):
        assert f'<figure id="items-{task}">' in page
        assert f'"items-{task}":' in page
    assert page.count("240 items in 4 tasks.") >= 2
    assert page.index('id="loss-0"') < page.index('id="items-0"')
