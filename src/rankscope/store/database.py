"""The ledger's SQLite file: its tables and transactions.

For a trial it keeps the status, and records by kind and key, as checked JSON.
"""

import functools
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter

from rankscope.analyses import all_analyses
from rankscope.errors import (
    IntegrityError,
    RankscopeError,
    UserError,
    reading,
    reporting_shortages,
    shortage_behind,
)
from rankscope.filesystem import fsync, replace_bytes
from rankscope.records import (
    FAILED,
    AnalysisRecord,
    CurvePoint,
    EvalRecord,
    Record,
    ScoredModel,
    Status,
    TrainRecord,
    TrialSpec,
    variant_label,
)
from rankscope.store.artifacts import ARTIFACTS, CHECKPOINTS, STAGING, UNITS
from rankscope.store.row_hashes import LEDGER, LEDGER_REMEDY, keep_counts, row_sha256

LEDGER_VERSION = 7
SCHEMA = """
CREATE TABLE study (
    key TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,  -- of all other columns, as in every table
    body TEXT NOT NULL  -- JSON
) WITHOUT ROWID;
CREATE TABLE trials (
    trial_id TEXT PRIMARY KEY,
    position INTEGER,  -- place in the study as it is now; NULL for a trial it no longer has
    spec TEXT NOT NULL,
    status TEXT NOT NULL,
    failure TEXT,
    sha256 TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE records (
    trial_id TEXT NOT NULL,
    kind TEXT NOT NULL,  -- as of _kind_of
    key TEXT NOT NULL,  -- task/step of a curve's point, task/split of an eval,
    -- with /change of a variant, or ''
    sha256 TEXT NOT NULL,
    settings TEXT NOT NULL,  -- what the record depends on besides its trial, canonical JSON
    body TEXT NOT NULL,  -- last, so that reading the others does not read its pages
    PRIMARY KEY (trial_id, kind, key)
);
CREATE TABLE artifacts (
    path TEXT PRIMARY KEY, file_sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL
);
CREATE TABLE totals (
    name TEXT PRIMARY KEY,  -- of another table
    num_rows INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO totals VALUES ('study', 0), ('trials', 0), ('records', 0), ('artifacts', 0);
"""
WRITE_AHEAD = b"\2\2"  # Bytes 18 and 19 of a file in this journal mode (SQLite's file format)
SMALL_WRITE = "some ten thousand bytes"  # Size of a transaction, which SQLite does not report

NO_DAMAGE = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_MISUSE),
    }
)
"""Primary codes of SQLite that concern the machine or a bug, not the content of the file."""

MOST_TRIES = 100  # Five seconds, for readers of an earlier state and of the lock

PointKey = tuple[str, str, int]  # Point of a learning curve: (trial id, task, optimizer steps done)
StoredRecord = TrainRecord | CurvePoint | EvalRecord | AnalysisRecord

UNTRAINED: tuple[Status, ...] = ("planned", *sorted(FAILED))  # From which training can end

R = TypeVar("R", bound=StoredRecord)
Stored = TypeVar("Stored")


class TrialFailure(NamedTuple):
    trial_id: str
    status: Literal["diverged", "oom", "failed"]
    reason: str  # One sentence


class StoredGroups(Record):
    """Groups, and the limits that cut them; later runs keep them, whatever memory is free."""

    max_group_size: int | None
    memory_limit: int | None
    groups: tuple[tuple[str, ...], ...]  # Trial ids
    batch_tokens: dict[str, int] = {}  # By trial id, if the study's were too many


_KIND_OF: dict[type[Record], str] = {TrainRecord: "train", CurvePoint: "curve", EvalRecord: "eval"}


def _kind_of(record: type[Record]) -> str:
    """Return the ledger's name for a class of stored records; an analysis gives its own."""
    if record in _KIND_OF:
        return _KIND_OF[record]
    return next(a.name for a in all_analyses() if a.record_type() is record)


def _key_of(record: StoredRecord) -> str:
    """Return the key that tells a trial's records of one kind apart."""
    match record:
        case EvalRecord():
            return eval_key(*record.key)
        case CurvePoint():
            return f"{record.task}/{record.step}"
    return ""


def eval_key(model: ScoredModel, task: str, split: str) -> str:
    """Return the key of an evaluation among those of its trial."""
    return f"{task}/{split}/{variant_label(model)}".rstrip("/")


def record_row(record: StoredRecord, settings: str) -> tuple[str, ...]:
    """Make a row of ``records``. Raises IntegrityError for numbers that JSON does not have."""
    trial_id, kind, key = record.trial_id, _kind_of(type(record)), _key_of(record)
    with reading(f"{kind} record of {trial_id} {key}", "finite numbers", IntegrityError):
        body = json.dumps(record.model_dump(), separators=(",", ":"), allow_nan=False)
    digest = row_sha256(trial_id, kind, key, settings, body)
    return trial_id, kind, key, digest, settings, body


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Connect to a ledger of this version; a writer creates it.

    Raises IntegrityError: the file is damaged.
    """
    if write and not holds_bytes(path):
        _create(path)
    # SQLite can read a WAL database in a writable folder, or beside a writer. Elsewhere it needs
    # "immutable", which does not see a writer's changes that are not yet in the file.
    is_shared = os.access(path.parent, os.W_OK) or Path(f"{path}-shm").exists()
    mode = "rw" if write else ("ro" if is_shared else "ro&immutable=1")
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    with closed_by_errors(db, path.parent):
        if write:
            db.execute("PRAGMA synchronous = FULL")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version != LEDGER_VERSION:
            do = "use the Rankscope that wrote it, or another --out folder"
            raise UserError(path, f"ledger version {version}", f"{LEDGER_VERSION}", do)
        if write:
            keep_counts(db)
    return db


@contextmanager
def closed_by_errors(db: sqlite3.Connection, out: Path) -> Iterator[None]:
    """Close the ledger in ``out`` after an error; errors of SQLite become
    :func:`ledger_error`'s."""
    try:
        yield
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error) and (known := ledger_error(out, error)):
            raise known from error
        raise


def holds_bytes(path: Path) -> bool:
    """Whether there is a ledger. Raises UserError for a folder of that name."""
    if path.is_dir():
        raise UserError(path, "a folder", "a file", "move it away")
    return path.is_file() and path.stat().st_size > 0


def _create(path: Path) -> None:
    """Make an empty ledger in one step: a full disk leaves none or a whole one.

    The journal mode is set from the start. Changing it on a disk that fails leaves a rollback
    journal, and with that nobody can read the ledger before a run has written to it.
    """
    for name in (ARTIFACTS, STAGING, CHECKPOINTS, UNITS):
        if (path.parent / name).exists():
            found = f"a folder {name!r} but no ledger"
            do = "give another --out folder, or move it away"
            raise UserError(path.parent, found, "an empty or new folder, or a study", do)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LEDGER_VERSION}; COMMIT;")
        content = bytearray(db.serialize())
    content[18:20] = WRITE_AHEAD
    replace_bytes(path, bytes(content))
    fsync(path.parent)


def is_damaged(error: BaseException | None) -> bool:
    """Whether SQLite read bytes that it cannot have written; a full or busy disk is no damage."""
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    code = getattr(error, "sqlite_errorcode", None)  # not set for text that is not UTF-8
    if code is None or code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return True
    return code & 0xFF not in NO_DAMAGE


def ledger_error(out: Path, error: sqlite3.Error) -> RankscopeError | None:
    """Translate an error of SQLite for the user; None for a bug."""
    if not is_damaged(error):
        return shortage_behind(error, out / LEDGER)
    do = f"{LEDGER_REMEDY}. 'rankscope verify' shows what was changed"
    return IntegrityError(out / LEDGER, f"damage ({error})", "what was written", do)


@functools.cache
def _validator(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parse_record(kind: type[Stored], body: Any, where: str) -> Stored:
    """Parse a stored JSON text as a value of a type that Pydantic checks."""
    model: Any = kind
    name = getattr(kind, "__name__", "number")
    with reading(f"{LEDGER}: {where}", f"a {name}", IntegrityError, LEDGER_REMEDY):
        # A section may have been added to a model after it was first read.
        parse = getattr(model, "model_validate_json", None) or _validator(model).validate_json
        value: Stored = parse(body)
    return value


@contextmanager
def transaction(db: sqlite3.Connection, out: Path) -> Iterator[None]:
    """Make all statements inside take effect together, durably, or not at all. Raises DiskFull."""
    with reporting_shortages(out / LEDGER, lambda: SMALL_WRITE):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Let all reads inside see one state, also while a run writes."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def is_whole_file(db: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the file; False if a reader or the disk prevents it."""
    for _ in range(MOST_TRIES):
        try:
            _, num_pages, num_moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            return False
        if num_moved == num_pages:
            return True
        time.sleep(0.05)  # a reader still sees an earlier state
    return False


def has_study(db: sqlite3.Connection) -> bool:
    return stored(db, "name", str) is not None


def stored(db: sqlite3.Connection, key: str, kind: type[Stored]) -> Stored | None:
    """Read one entry of the ``study`` table; None without it."""
    row = db.execute("SELECT body FROM study WHERE key = ?", (key,)).fetchone()
    return None if row is None else _parse_record(kind, row[0], f"study {key}")


def required(db: sqlite3.Connection, key: str, kind: type[Stored]) -> Stored:
    """Read an entry that every study has."""
    entry = stored(db, key, kind)
    if entry is None or entry == []:
        raise IntegrityError(f"{LEDGER}: study {key}", "none", "one", LEDGER_REMEDY)
    return entry


def stored_statuses(
    db: sqlite3.Connection, trial_ids: Collection[str] | None = None
) -> Iterator[tuple[str, str, Status, str | None]]:
    """Yield (trial id, JSON text, status, failure) of the study's current trials, in order.

    ``trial_ids`` limits them.
    """
    chosen = "" if trial_ids is None else "AND trial_id IN (SELECT value FROM json_each(?)) "
    rows = db.execute(
        "SELECT trial_id, spec, status, failure FROM trials WHERE position IS NOT NULL "
        f"{chosen}ORDER BY position",
        () if trial_ids is None else (json.dumps(list(trial_ids)),),
    )
    columns = _validator(tuple[str, str, Status, str | None])
    for row in rows:
        where = f"{LEDGER}: trials {row[0]}"
        with reading(where, "a trial with its status", IntegrityError, LEDGER_REMEDY):
            checked = columns.validate_python(row, strict=True)
        yield checked


def stored_trials(db: sqlite3.Connection) -> Iterator[tuple[TrialSpec, Status, str | None]]:
    """Yield (trial, status, failure) of every current trial of the study, in order."""
    for trial_id, spec, status, failure in stored_statuses(db):
        yield _parse_record(TrialSpec, spec, f"trials {trial_id}"), status, failure


def stored_records(db: sqlite3.Connection, model: type[R]) -> Iterator[tuple[str, R]]:
    """Yield (trial id, record) of every record of one kind, in the order of their arrival."""
    kind, columns = _kind_of(model), "trial_id, key, body"
    rows = db.execute(f"SELECT {columns} FROM records WHERE kind = ? ORDER BY rowid", (kind,))
    for trial_id, key, body in rows:
        where = f"records {trial_id} {kind} {key}".rstrip()
        record = _parse_record(model, body, where)
        if trial_id != record.trial_id:
            found = f"a record of {record.trial_id}"
            raise IntegrityError(f"{LEDGER}: {where}", found, "one of its trial", LEDGER_REMEDY)
        yield trial_id, record


def json_list(records: Iterable[Record]) -> str:
    return json.dumps([record.model_dump(mode="json") for record in records])


def set_statuses(
    db: sqlite3.Connection,
    trial_ids: Iterable[str],
    status: Status,
    reason: str | None = None,
    expected: Collection[Status] | None = None,
) -> None:
    """Change the status of trials within a transaction; ``expected`` limits it to some statuses."""
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
