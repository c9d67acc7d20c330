"""Figures of the report as files: vector graphics with the plot's own marks and texts."""

import errno
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_studies import ordinary_study

from rankscope.errors import DiskFull, UserError
from rankscope.report.charts.figure import Figure
from rankscope.report.study_page import study_sections
from rankscope.report.study_view import StudyView
from rankscope.tools import figure_files
from rankscope.tools.figure_files import (
    check_figures,
    draw_files,
    line_names,
    list_entry,
    static_plot,
)


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*ordinary_study())


@pytest.fixture(scope="module")
def figures(view: StudyView) -> list[Figure]:
    return [f for section in study_sections(view) for f in section.figures if f.plot is not None]


def test_a_drop_down_shows_its_first_entry_and_lines_have_a_legend(
    view: StudyView, figures: list[Figure]
) -> None:
    lines = line_names(view)
    assert sorted(lines.values()) == ["lr=0.001", "lr=0.003"]
    with_choices = next(f for f in figures if len(f.choices) > 1)
    shown = static_plot(with_choices, lines)
    assert len(shown.data) == len(with_choices.choices[0].traces)
    assert all(trace.visible for trace in shown.data)
    plane = next(f for f in figures if f.key == "plane-0")
    named = [
        trace.name for trace in static_plot(plane, lines).data if trace.showlegend is not False
    ]
    assert named == list(lines.values())
    assert len(plane.plot.data) == len(static_plot(plane, lines).data) - 2  # type: ignore[union-attr]


def test_files_are_vector_graphics_with_text(
    view: StudyView, figures: list[Figure], tmp_path: Path, figure_writer: None
) -> None:
    plane = next(f for f in figures if f.key == "plane-0")
    (svg,) = draw_files([plane], tmp_path, "svg", line_names(view))
    text = svg.read_text("utf-8")
    assert "<image" not in text
    assert "gain over base, points" in text
    # A mark for the base and every arm of the task, at least.
    marks = re.findall(r'class="point"', text)
    assert len(marks) >= 1 + len(view.arms("med"))
    (pdf,) = draw_files([plane], tmp_path, "pdf", {})
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Image" not in content
    assert b"/FontDescriptor" in content


def test_without_a_browser_the_error_says_what_to_do(
    figures: list[Figure], tmp_path: Path, figure_writer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no Chrome or Chromium could be started"):
        draw_files([figures[0]], tmp_path, "svg", {})


def test_a_full_disk_is_named_and_titles_are_escaped(
    figures: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = replace(figures[0], title="a*b*")
    assert list_entry(figure, Path("a.pdf")).startswith("## a\\*b\\*\n\n`a.pdf`\n\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figure_files, "draw_files", full)
    with pytest.raises(DiskFull, match="found the disk full"):
        figure_files.write_study_figures(*ordinary_study(), tmp_path / "out", "svg")


def test_what_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="expected pdf, svg or png"):
        check_figures(tmp_path / "s", tmp_path / "out", "gif")
    with pytest.raises(UserError, match="give --figures another place"):
        check_figures(tmp_path / "s", tmp_path / "s" / "figures", "pdf")
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(UserError, match=r"pip install 'rankscope\[figures\]'"):
        check_figures(tmp_path / "s", tmp_path / "out", "pdf")
