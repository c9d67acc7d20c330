"""Hashes of the ledger's rows, and their number by table: they reveal edited or deleted rows."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator

HASHED_COLUMNS = {
    "study": "key, body",
    "trials": "trial_id, position, spec, status, failure",
    "records": "trial_id, kind, key, settings, body",
    "artifacts": "path, file_sha256, bytes",
}
"""Columns that a row's ``sha256`` covers, by table: all others."""
KEYS = {"study": 1, "trials": 1, "records": 3, "artifacts": 1}
"""Number of leading columns that name a row, by table."""
LEDGER = "ledger.sqlite"
LEDGER_REMEDY = "restore it from a copy, or run the study again in another folder"

RowValue = str | int | None


def keep_counts(db: sqlite3.Connection) -> None:
    """Let SQLite itself count the rows that this writer adds and removes.

    No statement can then be forgotten. The connection of another program lacks these triggers.
    """
    db.create_function("row_sha256", -1, row_sha256, deterministic=True)
    db.execute("PRAGMA temp_store = MEMORY")
    for table in HASHED_COLUMNS:
        for event, change in (("INSERT", "+ 1"), ("DELETE", "- 1")):
            db.execute(
                f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN UPDATE "
                f"totals SET num_rows = num_rows {change} WHERE name = '{table}'; END"
            )


def row_sha256(*values: RowValue) -> str:
    texts = [None if value is None else str(value) for value in values]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def changed_rows(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield (place, expected, found) of every row that was changed after it was written.

    A table that lost rows, or has rows of another program, is yielded, too.
    """
    totals = dict(db.execute("SELECT name, num_rows FROM totals"))
    for table, columns in HASHED_COLUMNS.items():
        num_rows = 0
        for digest, *values in db.execute(f"SELECT sha256, {columns} FROM {table}"):
            num_rows += 1
            if (now := row_sha256(*values)) != digest:
                name = " ".join(str(value) for value in values[: KEYS[table]])
                yield f"{LEDGER}: {table} {name}".rstrip(), f"sha256 {digest}", f"sha256 {now}"
        if totals.get(table) != num_rows:
            yield f"{LEDGER}: table {table}", f"{totals.get(table)} rows", f"{num_rows}"
