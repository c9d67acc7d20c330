"""What a study writes for its reader: the recommendation and the report."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rankscope.advise.recommend import recommend
from rankscope.errors import DiskFull, UserError
from rankscope.filesystem import is_disk_full, replace_bytes, replace_text
from rankscope.hashing import SUMS, sums_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.study_page import write_study_page
from rankscope.store import OUTPUT_FILES, Ledger


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
    made = out / "report.html.new"
    try:
        write_study_page(study, recommendation, made)
        answer = recommendation.model_dump_json(indent=2) + "\n"
        replace_outputs(out, (answer.encode(), made.read_bytes()))
    except OSError as error:
        if not out.is_dir():
            raise UserError(
                f"{out}: found no such folder any more, expected the study; it was moved or "
                "removed meanwhile: rankscope report where it is now"
            ) from error
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; no report was written. Make room.") from error
    finally:
        made.unlink(missing_ok=True)
    return study, recommendation


def replace_outputs(out: Path, contents: Sequence[bytes]) -> None:
    """Replace ``OUTPUT_FILES``; after a crash at any moment, each has one of its listed hashes."""
    before = sums_text(out, OUTPUT_FILES)
    after = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in zip(OUTPUT_FILES, contents, strict=True)
    )
    if before != after:
        replace_text(out / SUMS, before + after)
    for name, content in zip(OUTPUT_FILES, contents, strict=True):
        replace_bytes(out / name, content)
    replace_text(out / SUMS, after)
