"""Our pages opened in Chromium: everything drawn, nothing asked for, nothing broken."""

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, NONE_FOUND, chromium, opened
from inspections import HOSTILE, inspection
from playwright.sync_api import Browser, Page
from pocket_study import changed, small_study
from report_studies import cells, hostile_study, ordinary_study

from rankscope.provenance import provenance
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.charts.figure import Figure
from rankscope.report.comparison_page import write_comparison_page
from rankscope.report.inspection_page import render_inspection
from rankscope.report.study_page import render_study, study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import SURFACE
from rankscope.run.study import write_outputs
from rankscope.tools.compare import compare

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NONE_FOUND)

DOWNLOADS = 10
"""Chromium asks before a page's eleventh download."""
PHONE = {"width": 400, "height": 800}
NO_OVERFLOW = "() => document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study trained here, with curves, milder forms and heads: every kind of figure."""
    folder = tmp_path_factory.mktemp("real")
    small_study(
        folder,
        arms=[
            {"method": "lora", "rank": [2, 8], "lr": [1e-3, 2e-3]},
            {"method": "full", "lr": 5e-4},
        ],
        max_group_size=None,
        **changed("train", evaluate_every=4, evaluate_items=8),
        **changed("evaluate", scales=[0.5]),
        analyze={"heads": {"enabled": True, "ablate": ["pocket_med"]}},
    ).run(folder / "out")
    write_outputs(folder / "out")
    return folder / "out"


def plots_of(study: StudyRecords, advice: Recommendation) -> int:
    """Figures of a study's page that have something to draw."""
    return sum(figure.plot is not None for figure in figures_of(study, advice))


def figures_of(study: StudyRecords, advice: Recommendation) -> list[Figure]:
    hero, parts = study_sections(StudyView(study, advice))
    return [*([hero] if hero else []), *(f for part in parts for f in part.figures)]


def written(page: str, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return path


def test_the_report_of_a_real_study_draws_every_figure(browser: Browser, real: Path) -> None:
    study, advice = write_outputs(real)
    expected = plots_of(study, advice)
    assert expected >= 14  # planes, curves, scaling, ranks, map, spectra, heads, loss, cost
    with opened(browser, real / "report.html") as found:
        found.assert_clean(expected)
        page = found.page
        for select in page.query_selector_all("select[data-for]"):
            for choice in range(len(select.query_selector_all("option"))):
                select.select_option(index=choice)
        found.assert_clean(expected)
        image = page.evaluate(
            "() => Plotly.toImage(document.querySelector('[data-figure]'), {format: 'png'})"
        )
        assert image.startswith("data:image/png;base64")


def column(page: Page, key: str, place: int) -> list[str]:
    """What a column of a figure's table shows, from top to bottom."""
    cells = page.query_selector_all(f"#{key} tbody td:nth-child({place})")
    return [cell.text_content() or "" for cell in cells]


def test_tables_sort_by_mouse_and_by_keyboard(browser: Browser, real: Path) -> None:
    with opened(browser, real / "report.html") as found:
        page = found.page
        page.eval_on_selector_all("details", "(all) => all.forEach((one) => { one.open = true; })")
        key = "in-domain-0"
        ranks = column(page, key, 2)
        # Two learning rates of two ranks; full fine-tuning and the base have no rank.
        assert sorted(ranks) == ["2", "2", "8", "8", "\N{EN DASH}", "\N{EN DASH}"]
        button = f"#{key} th:nth-child(2) button"
        page.click(button)
        assert column(page, key, 2) == ["2", "2", "8", "8", "\N{EN DASH}", "\N{EN DASH}"]
        heading = page.query_selector(f"#{key} th:nth-child(2)")
        assert heading is not None
        assert heading.get_attribute("aria-sort") == "ascending"
        page.focus(button)
        page.keyboard.press("Enter")
        assert column(page, key, 2) == ["8", "8", "2", "2", "\N{EN DASH}", "\N{EN DASH}"]
        assert heading.get_attribute("aria-sort") == "descending"
        page.click(f"#{key} th:nth-child(1) button")
        assert column(page, key, 1)[0] == "base"
        assert heading.get_attribute("aria-sort") is None
        bare = page.query_selector_all("table:has(tbody tr:nth-child(2)) th:not(:has(button))")
        assert bare == []


def test_every_table_of_a_figure_downloads_as_csv(browser: Browser, tmp_path: Path) -> None:
    study, advice = ordinary_study()
    figures = [figure for figure in figures_of(study, advice) if len(figure.data)]
    path = written(render_study(StudyView(study, advice)), tmp_path)
    for start in range(0, len(figures), DOWNLOADS):
        with opened(browser, path) as found:
            found.page.eval_on_selector_all(
                "details", "(all) => all.forEach((one) => { one.open = true; })"
            )
            assert len(found.page.query_selector_all("figure button.csv")) == len(figures)
            for figure in figures[start : start + DOWNLOADS]:
                assert_downloads(found.page, figure)
            assert found.complaints == []


def assert_downloads(page: Page, figure: Figure) -> None:
    """The button gives a file with every number of the figure's table."""
    with page.expect_download() as started:
        page.click(f"#{figure.key} button.csv")
    assert started.value.suggested_filename == f"rankscope-{figure.key}.csv"
    text = started.value.path().read_bytes().decode("utf-8")
    heading, *rows = csv.reader(io.StringIO(text, newline=""))
    assert heading == list(figure.data.columns)
    for row, expected in zip(rows, cells(figure), strict=True):
        for shown, cell in zip(row, expected, strict=True):
            if isinstance(cell, str):
                assert shown.removeprefix("'") == cell
            else:
                assert (float(shown) if shown else None) == cell


def test_a_dark_system_gets_dark_figures_and_may_change_its_mind(
    browser: Browser, real: Path
) -> None:
    paper = "() => document.querySelector('[data-figure]')._fullLayout.paper_bgcolor"
    with opened(browser, real / "report.html", color_scheme="dark") as found:
        found.assert_clean(plots_of(*write_outputs(real)))
        assert found.page.evaluate(paper) == SURFACE.dark
        found.page.emulate_media(color_scheme="light")
        deadline = time.monotonic() + 60
        while found.page.evaluate(paper) != SURFACE.light and time.monotonic() < deadline:
            found.page.wait_for_timeout(50)  # the page's policy forbids Playwright's own waiting
        assert found.page.evaluate(paper) == SURFACE.light
        assert found.complaints == []


def test_a_phone_gets_no_sideways_scroll(browser: Browser, real: Path) -> None:
    with opened(browser, real / "report.html", viewport=PHONE) as found:
        found.assert_clean(plots_of(*write_outputs(real)))
        assert found.page.evaluate(NO_OVERFLOW)
        found.page.eval_on_selector_all(
            "details", "(all) => all.forEach((one) => { one.open = true; })"
        )
        assert found.page.evaluate(NO_OVERFLOW)


def test_hostile_data_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    study, advice = hostile_study()
    path = written(render_study(StudyView(study, advice)), tmp_path)
    for viewport in ({"width": 1280, "height": 900}, PHONE):
        with opened(browser, path, viewport=viewport) as found:
            found.page.eval_on_selector_all(
                "details", "(all) => all.forEach((one) => { one.open = true; })"
            )
            for button in found.page.query_selector_all("button.sort"):
                button.click(force=True)
            found.assert_clean(plots_of(study, advice))
            assert found.page.evaluate(NO_OVERFLOW)


def test_the_pages_of_a_comparison_and_an_inspection_are_whole(
    browser: Browser, real: Path, tmp_path: Path
) -> None:
    small_study(tmp_path, arms=[{"method": "lora", "rank": [2, 8], "lr": 2e-3}], seeds=[0]).run(
        tmp_path / "other"
    )
    write_comparison_page(
        compare([real, tmp_path / "other"]), provenance(), tmp_path / "compared.html"
    )
    inspected = written(render_inspection(inspection(HOSTILE)), tmp_path)
    for path in (tmp_path / "compared.html", inspected):
        for context in ({"color_scheme": "dark"}, {"viewport": PHONE}):
            with opened(browser, path, **context) as found:
                drawn = len(found.page.query_selector_all("[data-figure]"))
                assert drawn >= 1
                found.assert_clean(drawn)
                assert found.page.evaluate(NO_OVERFLOW)
