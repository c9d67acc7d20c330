"""What a study writes for its reader: the recommendation and the report."""

from pathlib import Path

from rankscope.advise.recommend import recommend
from rankscope.filesystem import replace_text
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
    write_study_page(study, recommendation, made)
    replace_text(out / "report.html", made.read_bytes().decode())
    made.unlink()
    return study, recommendation
