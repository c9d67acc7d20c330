"""Pages opened in Chromium: everything drawn, nothing requested, nothing broken."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Opened, opened
from inspections import HOSTILE, inspection, page_of
from playwright.sync_api import Browser, Page
from report_studies import cells, compared_studies, hostile_study, study_and_advice, whole_study
from synthetic_study import Truth

from rankscope.records import Recommendation, StudyRecords
from rankscope.report.charts.figure import Figure
from rankscope.report.study_page import render_study, study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import SURFACE
from rankscope.tools.compare import render_comparison

PHONE = {"width": 400, "height": 800}
NO_OVERFLOW = "() => document.documentElement.scrollWidth <= innerWidth"
CAPTURE = """() => {
  window.captured = [];
  URL.createObjectURL = (blob) => { window.captured.push(blob); return "#"; };
}"""
"""Keep the files that the page makes: Chromium asks before the eleventh download of a page."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figure]]:
    """The page of a study with curves and texts, and its figures."""
    page = render_study(StudyView(*whole_study()))
    return written(page, tmp_path_factory.mktemp("whole")), figures_of(*whole_study())


@pytest.fixture(scope="module")
def shown(browser: Browser, whole: tuple[Path, list[Figure]]) -> Iterator[Opened]:
    """That page, drawn, with every table unfolded."""
    with opened(browser, whole[0]) as found:
        found.assert_clean(sum(figure.plot is not None for figure in whole[1]))
        yield found


def figures_of(study: StudyRecords, advice: Recommendation) -> list[Figure]:
    return [f for part in study_sections(StudyView(study, advice)) for f in part.figures]


def written(page: str, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return path


def test_the_report_of_a_whole_study_draws_every_figure(
    shown: Opened, whole: tuple[Path, list[Figure]]
) -> None:
    drawn = sum(figure.plot is not None for figure in whole[1])
    assert drawn >= 6  # plane, curve, ranks, maps, loss
    for select in shown.page.query_selector_all("select[data-for]"):
        for choice in range(len(select.query_selector_all("option"))):
            select.select_option(index=choice)
    shown.assert_clean(drawn)
    image = shown.page.evaluate(
        "() => Plotly.toImage(document.querySelector('[data-figure]'), {format: 'png'})"
    )
    assert image.startswith("data:image/png;base64")


def test_every_table_of_a_figure_is_a_csv_file(
    shown: Opened, whole: tuple[Path, list[Figure]]
) -> None:
    figures = [figure for figure in whole[1] if len(figure.data)]
    page = shown.page
    assert len(page.query_selector_all("figure button.csv")) == len(figures)
    page.evaluate(CAPTURE)
    page.eval_on_selector_all("figure button.csv", "(all) => all.forEach((one) => one.click())")
    texts = page.evaluate("() => Promise.all(window.captured.map((blob) => blob.text()))")
    for text, figure in zip(texts, figures, strict=True):
        heading, *rows = csv.reader(io.StringIO(text, newline=""))
        assert heading == list(figure.data.columns)
        for row, expected in zip(rows, cells(figure), strict=True):
            for shown_cell, cell in zip(row, expected, strict=True):
                number = float(shown_cell) if shown_cell and not isinstance(cell, str) else None
                assert (shown_cell.removeprefix("'") if isinstance(cell, str) else number) == cell


def column(page: Page, key: str, place: int) -> list[str]:
    """What a column of a figure's table shows, from top to bottom."""
    cells = page.query_selector_all(f"#{key} tbody td:nth-child({place})")
    return [cell.text_content() or "" for cell in cells]


def test_tables_sort_by_mouse_and_by_keyboard(shown: Opened) -> None:
    page = shown.page
    key = "against-rank-0"
    ranks = column(page, key, 2)
    # Two learning rates of three ranks; full fine-tuning and the base have no rank.
    expected = ["2", "2", "8", "8", "32", "32", "\N{EN DASH}", "\N{EN DASH}"]
    assert sorted(ranks) == sorted(expected)
    button = f"#{key} th:nth-child(2) button"
    page.click(button)
    assert column(page, key, 2) == expected
    heading = page.query_selector(f"#{key} th:nth-child(2)")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.focus(button)
    page.keyboard.press("Enter")
    assert column(page, key, 2) == [*expected[5::-1], *expected[6:]]
    assert heading.get_attribute("aria-sort") == "descending"
    page.click(f"#{key} th:nth-child(1) button")
    assert column(page, key, 1)[0] == "base"
    assert heading.get_attribute("aria-sort") is None
    bare = page.query_selector_all(".scroll table:has(tbody tr:nth-child(2)) th:not(:has(button))")
    assert bare == []


def test_no_copy_button_covers_code(shown: Opened) -> None:
    overlaps = shown.page.eval_on_selector_all(
        ".code",
        """(all) => all.map((one) => {
          const code = one.querySelector("pre").getBoundingClientRect();
          const button = one.querySelector(".copy").getBoundingClientRect();
          return code.right > button.left && code.bottom > button.top;
        })""",
    )
    assert overlaps
    assert not any(overlaps)


def test_a_phone_shows_the_names_that_have_room_there(browser: Browser, tmp_path: Path) -> None:
    truth = Truth(ranks=(2, 4, 8, 16, 32), lrs=(1e-3, 2e-3), full_lrs=(2e-4, 5e-4), num_items=60)
    study, advice = study_and_advice(truth)
    figure = next(f for f in figures_of(study, advice) if f.key == "plane-0")
    wide = figure.plot.data[-1]
    narrow = wide.meta["narrow"]
    assert list(wide.textposition) != list(narrow["textposition"])
    path = written(render_study(StudyView(study, advice)), tmp_path)
    shown = "() => document.querySelector('[data-figure=plane-0]').data.at(-1)"
    with opened(browser, path, viewport=PHONE) as found:
        drawn = found.page.evaluate(shown)
        assert drawn["text"] == list(narrow["text"])
        assert drawn["textposition"] == list(narrow["textposition"])
        found.page.set_viewport_size({"width": 1280, "height": 900})
        found.wait_until(
            lambda: found.page.evaluate(shown)["textposition"] == list(wide.textposition)
        )
        assert found.page.evaluate(shown)["text"] == list(wide.text)


def test_the_search_finds_items_by_word_and_by_outcome(shown: Opened) -> None:
    page = shown.page
    block = page.query_selector(".compared")
    first = [prompt.text_content() for prompt in block.query_selector_all(".pairs summary")]
    assert len(first) == 10
    word = (first[-1] or "").split()[-1]
    page.fill(".compared input[type=search]", word)
    found = [item.text_content() or "" for item in block.query_selector_all(".pairs > li")]
    assert found
    assert all(word.lower() in text.lower() for text in found)
    page.fill(".compared input[type=search]", "no item has these words <b>")
    assert block.query_selector_all(".pairs > li") == []
    assert (block.query_selector("output") or block).text_content() == "0 found"
    page.fill(".compared input[type=search]", "")
    assert [p.text_content() for p in block.query_selector_all(".pairs summary")] == first
    page.select_option(".compared .find select", "missed")
    outcomes = {item.get_attribute("class") for item in block.query_selector_all(".pairs > li")}
    assert outcomes <= {"missed"}
    page.select_option(".compared .find select", "")


def test_a_dark_phone_has_dark_figures_without_sideways_scroll_and_may_turn_light(
    browser: Browser, whole: tuple[Path, list[Figure]]
) -> None:
    paper = "() => document.querySelector('[data-figure]')._fullLayout.paper_bgcolor"
    with opened(browser, whole[0], color_scheme="dark", viewport=PHONE) as found:
        assert found.page.evaluate(NO_OVERFLOW)
        found.assert_clean(sum(figure.plot is not None for figure in whole[1]))
        assert found.page.evaluate(paper) == SURFACE.dark
        assert found.page.evaluate(NO_OVERFLOW)
        found.page.emulate_media(color_scheme="light")
        found.wait_until(lambda: found.page.evaluate(paper) == SURFACE.light)
        assert found.complaints == []


def test_hostile_data_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    study, advice = hostile_study()
    path = written(render_study(StudyView(study, advice)), tmp_path)
    with opened(browser, path) as found:
        found.unfold()
        found.page.eval_on_selector_all("button.sort", "(all) => all.forEach((one) => one.click())")
        for viewport in ({"width": 1280, "height": 900}, PHONE):
            found.page.set_viewport_size(viewport)
            found.wait_until(lambda: found.page.evaluate(NO_OVERFLOW))
        found.assert_clean(sum(f.plot is not None for f in figures_of(study, advice)))


def assert_whole(browser: Browser, page: str, folder: Path, at_least: int = 0) -> None:
    path = written(page, folder)
    with opened(browser, path, color_scheme="dark", viewport=PHONE) as found:
        drawn = len(found.page.query_selector_all("[data-figure]"))
        assert drawn >= at_least
        found.assert_clean(drawn)
        assert found.page.evaluate(NO_OVERFLOW)


def test_the_pages_of_a_comparison_and_of_given_models_are_whole(
    browser: Browser, tmp_path: Path
) -> None:
    comparison = compared_studies()
    given = inspection(HOSTILE)
    for page in (render_comparison(comparison, given.provenance), page_of(given)):
        assert_whole(browser, page, tmp_path)
