"""What a study writes for its reader: the recommendation and the report."""

from pathlib import Path

from rankscope.advise.recommend import recommend
from rankscope.filesystem import replace_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.study_page import write_study_page
from rankscope.shortage import reporting_shortages
from rankscope.store import Ledger


def write_outputs(
    out: Path, study: StudyRecords | None = None
) -> tuple[StudyRecords, Recommendation]:
    """Write ``recommendation.json`` and ``report.html`` from the stored records of a study.

    ``study`` are its records, if they are loaded already. An unchanged file is not written again.

    Raises:
        UserError: no study there.
        IntegrityError: a stored record or table was altered.
        DiskFull, DiskFailed, OutOfMemory: the earlier report stays.
    """
    if study is None:
        with Ledger.open(out, write=False) as ledger:
            study = ledger.load()
    with reporting_shortages(out, do="every trial is stored: free some memory"):
        recommendation = recommend(study)
        text = recommendation.model_dump_json(indent=2) + "\n"
        replace_text(out / "recommendation.json", text)
        write_study_page(study, recommendation, out / "report.html")
    return study, recommendation
