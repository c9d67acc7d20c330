"""Copy results between the ledger of a study and that of a unit of work."""

from collections.abc import Collection

from rankscope.errors import IntegrityError, reporting_shortages
from rankscope.store.artifacts import ARTIFACTS, link_or_copy
from rankscope.store.database import set_statuses, stored_statuses, transaction
from rankscope.store.ledger import Ledger
from rankscope.store.loading import WRITTEN_ROWS
from rankscope.store.verify import find_problems

ROWS = "SELECT * FROM records ORDER BY rowid"


def transfer(
    source: Ledger, target: Ledger, trial_ids: Collection[str], *, verified: bool = True
) -> None:
    """Copy statuses, records and artifacts of some trials, or of ``base``, from ``source`` to
    ``target``.

    The rows that the base wrote are copied, too. Everything takes effect in one transaction. Raises
    IntegrityError for a result that is altered in ``source``, or that differs from ``target``'s.
    ``verified`` hashes everything.
    """
    for problem in find_problems(source.out) if verified else ():
        raise IntegrityError(source.out / problem.where, problem.found, problem.expected)
    rows = [row for row in source._db.execute(ROWS) if row[0] in trial_ids]
    of_trial = "SELECT * FROM records WHERE trial_id = ?"  # not all: there may be 10,000 trials
    stored = {
        row[:3]: row
        for trial_id in {row[0] for row in rows}
        for row in target._db.execute(of_trial, (trial_id,))
    }
    paths = {WRITTEN_ROWS, *(f"{ARTIFACTS}/{trial_id}" for trial_id in trial_ids)}
    found = {artifact for path in paths for artifact in source.artifacts(path)}
    known = {artifact for path in paths for artifact in target.artifacts(path)}
    differing = [
        f"{row[1]} result of {row[0]} {row[2]}" for row in rows if stored.get(row[:3], row) != row
    ]
    differing += sorted({a.path for a in found - known} & {a.path for a in known})
    if differing:
        other = f"another {differing[0]} than in {target.out}"
        raise IntegrityError(source.out, other, "equal ones", "remove one of the two to continue")
    artifacts = sorted(found - known, key=lambda artifact: artifact.path)
    num_bytes = sum(artifact.num_bytes for artifact in artifacts)
    with reporting_shortages(target.out, lambda: f"{num_bytes:,} bytes"):
        for artifact in artifacts:
            link_or_copy(source.out / artifact.path, target.out / artifact.path)
    with transaction(target._db, target.out):
        target._insert(rows, artifacts)
        for trial_id, _, status, reason in stored_statuses(source._db, trial_ids):
            set_statuses(target._db, [trial_id], status, reason)
