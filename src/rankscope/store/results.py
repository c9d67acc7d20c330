"""What the ledger keeps of a trial: its status, and records by kind and key."""

import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from rankscope.analyses import all_analyses
from rankscope.errors import IntegrityError
from rankscope.records import (
    FAILED,
    AnalysisRecord,
    CurvePoint,
    EvalRecord,
    Record,
    RungRecord,
    Status,
    StopRecord,
    TrainRecord,
)
from rankscope.store.row_hashes import row_sha256

PointKey = tuple[str, str, int]  # Of a learning curve: (trial id, task, optimizer steps done)
StoredRecord = TrainRecord | CurvePoint | EvalRecord | AnalysisRecord | RungRecord | StopRecord

UNTRAINED: tuple[Status, ...] = ("planned", *sorted(FAILED))  # From which training can end


class TrialFailure(NamedTuple):
    trial_id: str
    status: Literal["diverged", "oom", "failed"]
    reason: str  # One sentence


class StoredGroups(Record):
    """Groups, and the limits they were cut by; a later run keeps them, whatever memory is free."""

    max_group_size: int | None
    memory_limit: int | None
    groups: tuple[tuple[str, ...], ...]  # Trial ids
    batch_tokens: dict[str, int] = {}  # By trial id, if the study's were too many


_KIND_OF: dict[type[Record], str] = {
    TrainRecord: "train",
    CurvePoint: "curve",
    EvalRecord: "eval",
    RungRecord: "rung",
    StopRecord: "stop",
}


def kind_of(record: type[Record]) -> str:
    """The name of a class of stored records in the ledger; an analysis gives its own."""
    if record in _KIND_OF:
        return _KIND_OF[record]
    return next(a.name for a in all_analyses() if a.record_type() is record)


def _key_of(record: StoredRecord) -> str:
    """What tells a trial's records of one kind apart."""
    match record:
        case EvalRecord():
            return f"{record.task}/{record.split}"
        case CurvePoint():
            return f"{record.task}/{record.step}"
        case RungRecord():
            return str(record.step)
    return ""


def record_row(record: StoredRecord, settings: str) -> tuple[str, ...]:
    """A row of ``records``. Raises IntegrityError for numbers that JSON does not have."""
    trial_id, kind, key = record.trial_id, kind_of(type(record)), _key_of(record)
    try:
        body = json.dumps(record.model_dump(), separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise IntegrityError(
            f"{kind} record of {trial_id} {key}",
            "NaN or an infinity",
            "finite numbers",
            "mark the trial as 'diverged' instead",
        ) from error
    digest = row_sha256(trial_id, kind, key, settings, body)
    return trial_id, kind, key, digest, settings, body


def set_statuses(
    db: sqlite3.Connection,
    trial_ids: Iterable[str],
    status: Status,
    reason: str | None = None,
    expected: Collection[Status] | None = None,
) -> None:
    """Change the status of trials, of each if it is one of ``expected``; within a transaction."""
    for trial_id in trial_ids:
        row = db.execute("SELECT status FROM trials WHERE trial_id = ?", (trial_id,)).fetchone()
        if row is None:
            raise KeyError(f"trial {trial_id!r} is not in the ledger")
        if expected is None or row[0] in expected:
            db.execute(
                "UPDATE trials SET status = ?1, failure = ?2, "
                "sha256 = row_sha256(trial_id, position, spec, ?1, ?2) WHERE trial_id = ?3",
                (status, reason, trial_id),
            )
