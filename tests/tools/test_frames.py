"""A study's tables as DataFrames, and its figures as files."""

import errno
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pocket_study import rewrite_rows
from report_studies import ordinary_study

import rankscope
from rankscope.errors import DiskFull, IntegrityError, UserError
from rankscope.filesystem import check_folder
from rankscope.hashing import sha256_file
from rankscope.records import BASE
from rankscope.report.answer import answer_html, answer_lines
from rankscope.report.charts.figure import Figure
from rankscope.report.study_page import study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import frame_rows, write_tables
from rankscope.report.tables import arms_table, study_tables
from rankscope.store import items_path
from rankscope.tools import figure_files
from rankscope.tools.figure_files import (
    _line_names as line_names,
    _list_entry as list_entry,
    _static_plot as static_plot,
    check_figures,
    draw_files,
)
from rankscope.tools.frames import StudyFrames


@pytest.fixture(scope="module")
def study(exportable: Any) -> StudyFrames:
    return rankscope.load(exportable.out)


def test_every_trial_model_and_item_has_one_row(exportable: Any, study: StudyFrames) -> None:
    records = exportable.records
    assert list(study.trials["trial"]) == [t.spec.trial_id for t in records.trials]
    assert study.trials["rank"].dtype == "Int64"
    assert set(study.trials["status"]) == {"done"}
    assert len(study.scores) == len(records.evals)
    assert not study.scores.duplicated(["trial", "variant", "task", "split"]).any()
    assert len(study.items) == sum(record.n for record in records.evals.values())
    assert not study.items.duplicated(["trial", "variant", "task", "split", "item"]).any()
    assert len(study.losses) == sum(len(t.train.losses) for t in records.trials if t.train)


def test_tables_agree_with_each_other(study: StudyFrames) -> None:
    """The mean of a model's items is its score, and its change is that minus the base's."""
    keys = ["trial", "task", "split"]
    means = study.items.groupby(keys)["score"].mean()
    scores = study.scores.set_index(keys)["score"]
    pd.testing.assert_series_equal(means.sort_index(), scores.sort_index(), rtol=1e-12)
    base = study.scores[study.scores["trial"] == BASE].set_index(["task", "split"])["score"]
    expected = study.scores["score"] - [
        base[key] for key in zip(study.scores["task"], study.scores["split"], strict=True)
    ]
    assert list(study.scores["change"]) == list(expected)
    last = study.losses.groupby("trial")["loss"].last()
    assert dict(last) == dict(zip(study.trials["trial"], study.trials["final_loss"], strict=True))


def test_the_answer_reads_as_text_and_as_a_card(study: StudyFrames) -> None:
    (advice,) = study.recommendation.advice
    assert repr(study.answer) == "\n".join(answer_lines(advice, with_reasons=True))
    assert study.answer._repr_html_() == answer_html(StudyView(study.records, study.recommendation))
    assert list(study.arms["arm"]) == ["base", *(arm.label for arm in advice.arms)]


def test_items_of_another_version_are_no_missing_scores(exportable: Any, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(exportable.out, out)
    place = items_path(BASE, "pocket_med", "test")
    older = pq.read_table(out / place).drop_columns(["gold_logprob"])
    pq.write_table(older, out / place)
    rewrite_rows(
        out,
        "UPDATE artifacts SET file_sha256 = ?, bytes = ? WHERE path = ?",
        (sha256_file(out / place), (out / place).stat().st_size, place),
    )
    with pytest.raises(IntegrityError, match="no column 'gold_logprob', as another version"):
        _ = rankscope.load(out).recommendation


def test_a_table_that_has_no_rows_any_more_is_removed(tmp_path: Path) -> None:
    study, advice = ordinary_study()
    out = tmp_path / "new" / "tables"
    out.mkdir(parents=True)
    for name in ("without-contamination.md", "mine.md"):
        (out / name).write_text("of another day")
    written = write_tables(study_tables(StudyView(study, advice)), out)
    assert {path.name for path in out.iterdir()} == {"mine.md", *(path.name for path in written)}
    stored = pd.read_parquet(out / "arms.parquet")
    assert frame_rows(stored) == frame_rows(arms_table(StudyView(study, advice)))


def test_tables_need_a_folder_outside_the_study(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, part in (("study/tables", "inside the study"), ("file", "found a file")):
        with pytest.raises(UserError, match=part):
            check_folder(tmp_path / "study", tmp_path / out, "--tables")


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
    with pytest.raises(UserError, match="expected Chrome or Chromium to draw them; install one"):
        draw_files([figures[0]], tmp_path, "svg", {})


def test_an_error_of_a_drawing_is_no_missing_browser(
    figures: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such color")

    monkeypatch.setattr("kaleido.write_fig_from_object_sync", broken)
    with pytest.raises(RuntimeError, match="no such color"):
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
    with pytest.raises(UserError, match="give --figures another place"):
        check_figures(tmp_path / "s", tmp_path / "s" / "figures")
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(UserError, match=r"pip install 'rankscope\[figures\]'"):
        check_figures(tmp_path / "s", tmp_path / "out")
