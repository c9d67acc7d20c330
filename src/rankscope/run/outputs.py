"""Files that a study writes for its reader: the recommendation and the report."""

from pathlib import Path

from rankscope.advise.recommend import recommend
from rankscope.errors import reporting_shortages
from rankscope.filesystem import check_in_place, replace_bytes, replace_text
from rankscope.hashing import SUMS, sums_line, sums_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.page_limit import limited
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView
from rankscope.store import OUTPUT_FILES, Ledger


def write_outputs(
    out: Path, study: StudyRecords | None = None
) -> tuple[StudyRecords, Recommendation]:
    """Write ``recommendation.json`` and ``report.html`` from the stored records of a study.

    Both hold at most ``MAX_PAGE_ARMS`` arms; the returned recommendation holds all. ``study`` are
    its records, if they are loaded already. An unchanged file is not written again.

    Raises UserError: there is no study. Raises IntegrityError: a stored record or table was
    altered. Raises DiskFull or OutOfMemory: the earlier report stays.
    """
    if study is None:
        study = Ledger.read(out)
    with reporting_shortages(out, do="every trial is stored: free some memory"):
        recommendation = recommend(study)
        view = StudyView(study, recommendation)
        shown = limited(view)
        answer = shown.recommendation.model_dump_json(indent=2) + "\n"
        page = render_study(view, str(out), shown)
        check_in_place(out)
        contents = answer.encode(), page.encode()
        # After a crash at any moment, each file has one of its listed hashes.
        before = sums_text(out, OUTPUT_FILES)
        after = "".join(map(sums_line, contents, OUTPUT_FILES))
        if before != after:
            replace_text(out / SUMS, before + after)
        for name, content in zip(OUTPUT_FILES, contents, strict=True):
            replace_bytes(out / name, content)
        replace_text(out / SUMS, after)
    return study, recommendation
