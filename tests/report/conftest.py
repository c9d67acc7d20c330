"""The study that most figures and tables are of."""

import pytest
from report_studies import ordinary_study

from rankscope.report.study_view import StudyView


@pytest.fixture(scope="session")
def view() -> StudyView:
    return StudyView(*ordinary_study())
