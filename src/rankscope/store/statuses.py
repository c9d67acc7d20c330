"""Where the trials of a study stand: ``planned``, ``trained``, ``done``, or why they failed."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rankscope.records import FAILED, Status

UNTRAINED: tuple[Status, ...] = ("planned", *sorted(FAILED))
"""From these a trial can become trained, or fail (again)."""


@dataclass(frozen=True, slots=True)
class TrialFailure:
    """Why a trial did not finish; kept and shown like any result."""

    trial_id: str
    status: Literal["diverged", "oom", "failed"]
    reason: str
    """One sentence."""


def stored_statuses(db: sqlite3.Connection) -> dict[str, Status]:
    """Status by trial id, for the trials of the study as it is now, in order."""
    rows = db.execute(
        "SELECT trial_id, status FROM trials WHERE position IS NOT NULL ORDER BY position"
    )
    return dict(rows)


def set_status(
    db: sqlite3.Connection,
    trial_id: str,
    status: Status,
    reason: str | None = None,
    expected: Sequence[Status] | None = None,
) -> None:
    """Move a trial on from one of the ``expected`` statuses; elsewhere it stays as it is.

    Call it within a transaction. Raises KeyError for a trial that is not in the ledger.
    """
    row = db.execute("SELECT status FROM trials WHERE trial_id = ?", (trial_id,))
    found = row.fetchone()
    if found is None:
        raise KeyError(f"trial {trial_id!r} is not in the ledger")
    if expected is None or found[0] in expected:
        db.execute(
            "UPDATE trials SET status = ?, failure = ? WHERE trial_id = ?",
            (status, reason, trial_id),
        )


def plan_again(db: sqlite3.Connection, trial_id: str) -> None:
    """Plan a failed trial again; one that was trained goes back to ``trained``."""
    trained = db.execute(
        "SELECT 1 FROM records WHERE trial_id = ? AND kind = 'train'", (trial_id,)
    ).fetchone()
    set_status(db, trial_id, "trained" if trained else "planned", expected=tuple(FAILED))
