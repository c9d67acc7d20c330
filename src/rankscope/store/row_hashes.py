"""Hashes of the ledger's rows, and of each table as a whole: an edited or deleted row is found.

Every row holds the sha256 of its other columns. The table ``totals`` holds, by table, the number of
rows and the sum of their hashes modulo 2^256.
"""

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
"""By table, the columns that a row's ``sha256`` covers: all others."""
KEYS = {"study": 1, "trials": 1, "records": 3, "artifacts": 1}
"""By table, how many of them name a row."""
LEDGER = "ledger.sqlite"
LEDGER_REMEDY = "restore it from a copy, or run the study again in another folder"
MODULUS = 2**256

RowValue = str | int | None


class Database(sqlite3.Connection):
    """A connection in autocommit mode; a writer's counts what its transactions change."""

    changes: dict[str, list[int]]
    """By table, since the transaction began: rows gained, and the sum of their hashes gained."""

    def count_changes(self) -> None:
        """Have SQLite itself report changed rows, so that no statement can be forgotten."""
        self.create_function("tally", 3, self._tally)
        self.create_function("row_sha256", -1, row_sha256, deterministic=True)
        self.execute("PRAGMA temp_store = MEMORY")
        for table in HASHED_COLUMNS:
            gone, new = (
                f"tally('{table}', {n}, {row}.sha256)" for n, row in ((-1, "OLD"), (1, "NEW"))
            )
            changes = {"INSERT": new, "DELETE": gone, "UPDATE": f"{gone}, {new}"}
            for event, counts in changes.items():
                self.execute(
                    f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} "
                    f"BEGIN SELECT {counts}; END"
                )

    def _tally(self, table: str, sign: int, digest: str) -> None:
        change = self.changes[table]
        change[0] += sign
        change[1] += sign * int(digest, 16)

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")
        self.changes = {table: [0, 0] for table in HASHED_COLUMNS}

    def commit_with_totals(self) -> None:
        totals = dict(_stored_totals(self))
        for table, (rows, gained) in self.changes.items():
            if rows or gained:
                before, digest = totals.get(table, (0, "0"))
                total = (int(digest, 16) + gained) % MODULUS
                row = (table, before + rows, f"{total:064x}")
                self.execute("INSERT OR REPLACE INTO totals VALUES (?, ?, ?)", row)
        self.execute("COMMIT")


def row_sha256(*values: RowValue) -> str:
    texts = [None if value is None else str(value) for value in values]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def changed_rows(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """(place, expected, found) of every row that is not as it was written."""
    for table, columns in HASHED_COLUMNS.items():
        for digest, *values in db.execute(f"SELECT sha256, {columns} FROM {table}"):
            if (now := row_sha256(*values)) != digest:
                name = " ".join(str(value) for value in values[: KEYS[table]])
                yield f"{LEDGER}: {table} {name}".rstrip(), f"sha256 {digest}", f"sha256 {now}"


def changed_tables(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """(place, expected, found) of every table that lost rows or has rows of another writer."""
    totals = dict(_stored_totals(db))
    for table in HASHED_COLUMNS:
        rows, total = totals.get(table, (0, f"{0:064x}"))
        digests = [digest for (digest,) in db.execute(f"SELECT sha256 FROM {table}")]
        if len(digests) != rows:
            yield f"{LEDGER}: table {table}", f"{rows} rows", str(len(digests))
        elif _sum_of(digests) != total:
            yield f"{LEDGER}: table {table}", "the rows that a run wrote", "others"


def _stored_totals(db: sqlite3.Connection) -> Iterator[tuple[str, tuple[int, str]]]:
    for table, rows, digest in db.execute("SELECT name, num_rows, sha256 FROM totals"):
        yield table, (rows, digest)


def _sum_of(digests: list[str]) -> str:
    try:
        return f"{sum(int(digest, 16) for digest in digests) % MODULUS:064x}"
    except (TypeError, ValueError):
        return "no numbers"
