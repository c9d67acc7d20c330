"""A study as data frames, in a notebook and in files."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from ledger_rows import rewrite_rows
from report_studies import ordinary_study

import rankscope
from rankscope.analyses.spectra.record import SpectraRecord
from rankscope.errors import IntegrityError, UserError
from rankscope.hashing import sha256_file
from rankscope.records import BASE
from rankscope.report.answer import answer_html, answer_lines
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import frame_rows
from rankscope.report.tables import arms_table
from rankscope.store import items_path
from rankscope.tools.frames import StudyFrames
from rankscope.tools.study_tables import check_folder, write_study_tables


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
    found = [s for t in records.trials if (s := t.analysis(SpectraRecord))]
    matrices = sum(len(spectra.matrices) for spectra in found)
    assert len(study.analyses["matrices"]) == matrices > 0
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
    written = write_study_tables(study, advice, out)
    assert {path.name for path in out.iterdir()} == {"mine.md", *(path.name for path in written)}
    stored = pd.read_parquet(out / "arms.parquet")
    assert frame_rows(stored) == frame_rows(arms_table(StudyView(study, advice)))


def test_tables_need_a_folder_outside_the_study(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, part in (("study/tables", "inside the study"), ("file", "found a file")):
        with pytest.raises(UserError, match=part):
            check_folder(tmp_path / "study", tmp_path / out, "--tables")
