"""The tables of a study as files."""

from pathlib import Path

from rankscope.errors import UserError, reporting_shortages
from rankscope.filesystem import check_outside, replace_bytes
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import FORMATS
from rankscope.report.tables import study_tables


def write_study_tables(
    study: StudyRecords, recommendation: Recommendation, out: Path
) -> list[Path]:
    """Write the main tables as ``arms.md``, ``arms.csv``, ``arms.tex``, ``arms.parquet`` and so on.

    A table without rows is not written, and its files of an earlier call are removed. Raises
    DiskFull: no file is cut short.
    """
    written = []
    with reporting_shortages(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, table in study_tables(StudyView(study, recommendation)).items():
            for ending, write in FORMATS.items():
                path = out / f"{name}.{ending}"
                if len(table):
                    replace_bytes(path, write(table))
                    written.append(path)
                else:
                    path.unlink(missing_ok=True)
    return written


def check_folder(study: Path, out: Path, option: str) -> None:
    """Raise UserError unless ``out`` is a folder, new or not, outside the study."""
    check_outside(out, study, option)
    if out.exists() and not out.is_dir():
        raise UserError(out, "a file", "a folder", f"choose another {option}")
