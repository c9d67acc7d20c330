"""Copy trials with all their results from one ledger into another."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from rankscope.errors import IntegrityError
from rankscope.filesystem import fsync
from rankscope.records import trial_of
from rankscope.store.artifacts import ARTIFACTS
from rankscope.store.ledger import Ledger


def transfer(
    source: Ledger, target: Ledger, trial_ids: Collection[str], *, verified: bool = True
) -> None:
    """Copy statuses, records and artifacts of some trials of ``source`` into ``target``.

    All of it takes effect in one transaction. Raises IntegrityError for a result that is altered in
    ``source`` (if ``verified``, everything is hashed), or that differs from ``target``'s.
    """
    if verified and (problems := source.verify()):
        raise IntegrityError(f"{source.out}: {problems[0]}; remove this folder to compute it again")
    rows = [row for row in source.record_rows() if trial_of(row[0]) in trial_ids]
    stored = {row[:3]: row for row in target.record_rows()}
    for row in rows:
        if stored.get(row[:3], row) != row:
            raise IntegrityError(
                f"{source.out}: {row[1]} result of {row[0]} {row[2]} differs from the one in "
                f"{target.out}; remove one of the two to continue"
            )
    known = {artifact.path for artifact in target.artifacts()}
    artifacts = [
        artifact
        for trial_id in trial_ids
        for artifact in source.artifacts(f"{ARTIFACTS}/{trial_id}")
        if artifact.path not in known
    ]
    for artifact in artifacts:
        link_or_copy(source.out / artifact.path, target.out / artifact.path)
    target.insert_results(
        rows, artifacts, [row for row in source.trial_rows() if row[0] in trial_ids]
    )


def link_or_copy(source: Path, target: Path) -> None:
    """Make a durable copy of a file that never changes; a hard link if the disk can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        fsync(target)
    fsync(target.parent)
