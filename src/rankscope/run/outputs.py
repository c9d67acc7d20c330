"""What a study writes for its reader: the recommendation and the report."""

from pathlib import Path

from rankscope.advise.recommend import recommend
from rankscope.errors import DiskFull
from rankscope.filesystem import is_disk_full, replace_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.study_page import write_study_page
from rankscope.store import Ledger


def write_outputs(
    out: Path, study: StudyRecords | None = None
) -> tuple[StudyRecords, Recommendation]:
    """Write ``recommendation.json`` and ``report.html`` from the stored records of a study.

    ``study`` are its records, if they are loaded already. An unchanged file is not written again.

    Raises:
        UserError: no study there.
        IntegrityError: a stored record or table was altered.
    """
    if study is None:
        with Ledger.open(out, write=False) as ledger:
            study = ledger.load()
    recommendation = recommend(study)
    replace_text(out / "recommendation.json", recommendation.model_dump_json(indent=2) + "\n")
    made = out / "report.html.new"
    try:
        write_study_page(study, recommendation, made)
        replace_text(out / "report.html", made.read_bytes().decode())
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; no report was written. Make room.") from error
    finally:
        made.unlink(missing_ok=True)
    return study, recommendation
