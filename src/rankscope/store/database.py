"""The ledger's SQLite file: its tables, transactions, and records as checked JSON."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rankscope.errors import IntegrityError, UserError
from rankscope.filesystem import fsync
from rankscope.records import Record, Status, TrialSpec
from rankscope.shortage import reporting_shortages
from rankscope.store.artifacts import ARTIFACTS, CHECKPOINTS, STAGING, UNITS

LEDGER_VERSION = 2
SCHEMA = """
CREATE TABLE study (
    key TEXT PRIMARY KEY,
    body TEXT NOT NULL,  -- JSON
    sha256 TEXT NOT NULL  -- of key and body
) WITHOUT ROWID;
CREATE TABLE trials (
    trial_id TEXT PRIMARY KEY,
    position INTEGER,  -- place in the study as it is now; NULL for a trial it no longer has
    spec TEXT NOT NULL,
    status TEXT NOT NULL,
    failure TEXT,
    sha256 TEXT NOT NULL  -- of trial_id and spec; the status changes
) WITHOUT ROWID;
CREATE TABLE records (
    trial_id TEXT NOT NULL,
    kind TEXT NOT NULL,  -- train, curve, eval, spectra or heads
    key TEXT NOT NULL,   -- task/step of a curve's point, task/split of an eval, else empty
    body TEXT NOT NULL,
    sha256 TEXT NOT NULL,  -- of body and settings
    settings TEXT NOT NULL,  -- what the record depends on besides its trial, canonical JSON
    PRIMARY KEY (trial_id, kind, key)
);
CREATE TABLE artifacts (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL);
"""
STUDY_KEYS = ("name", "config", "model", "tasks", "known_tasks", "provenance")  # Stored together
SMALL_WRITE = "some ten thousand bytes"  # Of a transaction, which SQLite does not report

R = TypeVar("R", bound=BaseModel)


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection in autocommit mode to a ledger of this version; a writer creates it."""
    if write and not holds_bytes(path):
        _create(path)
    # SQLite can read a WAL database only in a writable folder; on a read-only disk it needs
    # "immutable".
    mode = "rw" if write else ("ro" if os.access(path.parent, os.W_OK) else "ro&immutable=1")
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    try:
        if write:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version != LEDGER_VERSION:
            raise UserError(
                f"{path}: ledger version {version}, expected {LEDGER_VERSION}. Use the Rankscope "
                "that wrote it, or another --out folder."
            )
    except sqlite3.DatabaseError as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise IntegrityError(f"{path}: not a ledger ({error}).") from error
    except BaseException:
        db.close()
        raise
    return db


def holds_bytes(path: Path) -> bool:
    """Whether there is a ledger. Raises UserError for a folder of that name."""
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a file; move it away")
    return path.is_file() and path.stat().st_size > 0


def _create(path: Path) -> None:
    """Make an empty ledger and give it its name last: a full disk leaves none or a whole one."""
    _check_foreign_folders(path.parent)
    aside = path.with_name(path.name + ".new")
    try:
        aside.unlink(missing_ok=True)
        with closing(sqlite3.connect(aside, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {LEDGER_VERSION}; COMMIT;")
        fsync(aside)
        os.replace(aside, path)
        fsync(path.parent)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _check_foreign_folders(out: Path) -> None:
    """Refuse folders that a run would clear, since a new ledger names none of their files."""
    for name in (ARTIFACTS, STAGING, CHECKPOINTS, UNITS):
        if (out / name).exists():
            raise UserError(
                f"{out}: contains a folder {name!r} but no ledger. Expected an empty or new "
                "folder, or a study: give another --out folder, or move it away."
            )


def is_damaged(error: BaseException | None) -> bool:
    """Whether SQLite read bytes that it cannot have written; a full or busy disk is no damage."""
    # Subclasses mean wrong statements or a disk error, except for text that is not UTF-8.
    return type(error) is sqlite3.DatabaseError or (
        isinstance(error, sqlite3.OperationalError) and "Could not decode" in str(error)
    )


def damaged(out: Path, error: BaseException) -> IntegrityError:
    return IntegrityError(
        f"{out / 'ledger.sqlite'}: damaged since it was written ({error}). Restore it from a copy, "
        "or run the study again in another folder."
    )


def row_sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()


def check_row(place: str, digest: str, *texts: str) -> None:
    if row_sha256(*texts) != digest:
        raise IntegrityError(
            f"{place}: altered since it was written (its sha256 differs). Restore it from a copy, "
            "or run the study again in another folder."
        )


def parse_record(model: type[R], body: str, place: str) -> R:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise IntegrityError(f"{place}: not a {model.__name__} ({error}).") from error


@contextmanager
def transaction(db: sqlite3.Connection, out: Path) -> Iterator[None]:
    """All statements inside take effect together, durably, or none does. Raises DiskFull."""
    with reporting_shortages(out / "ledger.sqlite", lambda: SMALL_WRITE):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def has_study(db: sqlite3.Connection) -> bool:
    """Whether a run has stored a study. Raises IntegrityError if a part of it is gone."""
    stored = {key for (key,) in db.execute("SELECT key FROM study")}
    missing = [key for key in STUDY_KEYS if key not in stored]
    if not missing:
        return True
    count = "SELECT (SELECT COUNT(*) FROM trials) + (SELECT COUNT(*) FROM records)"
    if not stored and db.execute(count).fetchone() == (0,):
        return False
    raise IntegrityError(
        f"ledger.sqlite: found no {missing[0]!r} in the table study, expected one. Restore it from "
        "a copy, or run the study again in another folder."
    )


def study_body(db: sqlite3.Connection, key: str) -> str | None:
    """One entry of the ``study`` table, JSON text; checks its hash."""
    row = db.execute("SELECT body, sha256 FROM study WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    body, digest = row
    check_row(f"ledger.sqlite: study entry {key}", digest, key, body)
    return str(body)


def stored_json(db: sqlite3.Connection, key: str, default: Any = None) -> Any:
    body = study_body(db, key)
    if body is None:
        return default
    try:
        return json.loads(body)
    except ValueError as error:
        raise IntegrityError(f"study: {key}: not JSON ({error}).") from error


def stored_list(db: sqlite3.Connection, key: str, model: type[R]) -> list[R]:
    entries = stored_json(db, key, [])
    return [parse_record(model, json.dumps(entry), f"study: {key}") for entry in entries]


def stored_trials(db: sqlite3.Connection) -> Iterator[tuple[TrialSpec, Status, str | None]]:
    """(trial, status, failure) of every trial of the study as it is now, in order; checks hashes"""
    rows = db.execute(
        "SELECT trial_id, spec, status, failure, sha256 FROM trials WHERE position IS NOT NULL "
        "ORDER BY position"
    )
    for trial_id, spec, status, failure, digest in rows:
        place = f"ledger.sqlite: trial {trial_id}"
        check_row(place, digest, trial_id, spec)
        yield parse_record(TrialSpec, spec, place), status, failure


def stored_records(db: sqlite3.Connection, kind: str, model: type[R]) -> Iterator[tuple[str, R]]:
    """Every record of one kind with its trial id, as stored; checks its hash."""
    rows = db.execute(
        "SELECT trial_id, key, body, sha256, settings FROM records WHERE kind = ? ORDER BY rowid",
        (kind,),
    )
    for trial_id, key, body, digest, settings in rows:
        place = f"ledger.sqlite: {kind} record {trial_id} {key}".rstrip()
        check_row(place, digest, body, settings)
        yield trial_id, parse_record(model, body, place)


def json_list(records: Iterable[Record]) -> str:
    return json.dumps([record.model_dump(mode="json") for record in records])
