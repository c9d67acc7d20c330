"""What pages name of the core and of extensions is there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import opened
from playwright.sync_api import Browser
from report_studies import CURVES, study_and_advice, with_results

from generated_pages import DOCS, PART, generated, parts
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView

from ...models.test_architectures import CHECKS, table
from ...report.test_browser import (
    figures_of,
    test_the_report_of_a_whole_study_draws_every_figure as draws_every_figure,
    written,
)
from ...test_language import PAGES, REPOSITORY, unknown_names
from ...test_readme import PAGES as ALL_PAGES
from ..heads.records import with_heads
from ..spectra.records import with_spectra
from ..variants.test_figures import with_variants


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_names_on_a_page_exist(page: Path) -> None:
    assert unknown_names(page.read_text("utf-8")) == []


def test_the_tests_that_pages_name_are_there() -> None:
    """``train/test_parity.py`` in docs/methods.md is a file under tests/."""
    named = {
        file
        for page in ALL_PAGES
        for file in re.findall(r"`(?:tests/)?([a-z_/]*test_[a-z_]+\.py)`", page.read_text("utf-8"))
    }
    assert len(named) > 10
    assert [file for file in sorted(named) if not (REPOSITORY / "tests" / file).is_file()] == []


def test_pages_describe_every_key_method_preset_and_verb_as_the_code_does() -> None:
    pages = [path.read_text("utf-8") for path in DOCS.glob("*.md")]
    assert [generated(page) for page in pages] == pages, "run scripts/generated_pages.py"
    written = {name for page in pages for _, name in PART.findall(page)}
    assert written == {name for name, text in parts().items() if text.count("\n") > 2}


def test_the_page_names_every_architecture_check() -> None:
    columns = {column for row in table().values() for column in row}
    assert columns == {*CHECKS, "spectra", "heads", "window"}


def test_the_page_of_a_whole_study_draws_every_figure(browser: Browser, tmp_path: Path) -> None:
    study, advice = study_and_advice(replace(CURVES, tasks=("med",), ranks=(2, 8), seeds=(0, 1)))
    whole = with_heads(with_spectra(with_variants(with_results(study))))
    view = StudyView(whole, advice)
    figures = figures_of(view.study, view.recommendation)
    assert len({figure.key for figure in figures}) == len(figures) >= 18
    with opened(browser, written(render_study(view), tmp_path)) as shown:
        shown.unfold()
        draws_every_figure(shown, (tmp_path, figures))
