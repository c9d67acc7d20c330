"""Tables of a study as files."""

from pathlib import Path

import pandas as pd
import pytest
from report_studies import ordinary_study

from rankscope.errors import UserError
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import frame_rows
from rankscope.report.tables import arms_table
from rankscope.tools.study_tables import check_folder, write_study_tables


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
