"""Ledgers with rows that somebody changed together with their hashes, and what reads them."""

import atexit
import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz_mutations import HOSTILE, altered, json_text

sys.path.insert(1, str(Path(__file__).parents[2] / "tests" / "fixtures"))

KEYS = {
    "study": ("key",),
    "trials": ("trial_id",),
    "records": ("trial_id", "kind", "key"),
    "artifacts": ("path",),
}
"""Columns that name a row, by table."""
VALUES = (None, 0, -1, 1e300, "", "{}", "[]", "null", "x", "done", {"hex": "ff"})


@cache
def stored_study() -> Path:
    """The ledger of a simulated study; its files are in ``out`` beside it."""
    from synthetic_study import Truth, synthetic_study

    from fault_scale import store

    truth = Truth(ranks=(2, 8), lrs=(1e-3,), seeds=(0, 1), num_items=5, curve_steps=(5, 10))
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store(synthetic_study(truth), folder / "out")
    path = folder / "ledger.sqlite"
    with sqlite3.connect(path) as copy:
        sqlite3.connect(folder / "out" / "ledger.sqlite").backup(copy)
    copy.close()
    (folder / "out" / "ledger.sha256").unlink()
    return path


@cache
def rows_of(table: str) -> list[dict[str, Any]]:
    db = sqlite3.connect(stored_study())
    cursor = db.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


@st.composite
def changes(draw: st.DrawFn) -> list[Any]:
    """Table, number of the row, column, value."""
    from rankscope.store.row_hashes import HASHED_COLUMNS

    table = draw(st.sampled_from(list(HASHED_COLUMNS)))
    number = draw(st.integers(0, len(rows_of(table)) - 1))
    row = rows_of(table)[number]
    column = draw(st.sampled_from([name for name in row if name != "sha256"]))
    values = st.sampled_from(VALUES) | HOSTILE.map(json_text)
    if isinstance(row[column], str) and row[column][:1] in ("{", "["):
        values |= altered(json.loads(row[column])).map(json_text)
    return [table, number, column, draw(values)]


LEDGERS = st.lists(changes(), min_size=1, max_size=2).map(lambda given: json.dumps(given).encode())
"""Changes as JSON."""


def read_ledger(content: bytes, _: Path) -> None:
    """Apply the changes, with hashes that fit; then verify, load and report the study."""
    from rankscope.cli.status import status_data, status_table
    from rankscope.store import Ledger
    from rankscope.store.verify import find_problems

    out = stored_study().parent / "out"
    for file in out.glob("ledger.sqlite*"):
        file.unlink()
    shutil.copyfile(stored_study(), out / "ledger.sqlite")
    apply_changes(json.loads(content), out / "ledger.sqlite")
    find_problems(out, quick=True)
    with Ledger.open(out, write=False) as ledger:
        ledger.statuses()
        ledger.groups()
        study = ledger.load()
    status_table(status_data(study, out))


def apply_changes(changes: list[list[Any]], path: Path) -> None:
    """Update cells, then the hash of their rows."""
    from rankscope.store.row_hashes import HASHED_COLUMNS, row_sha256

    db = sqlite3.connect(path, isolation_level=None)
    db.create_function("row_hash", -1, row_sha256)
    for table, number, column, value in changes:
        row = rows_of(table)[number]
        key = " AND ".join(f"{name} IS ?" for name in KEYS[table])
        new = bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
        with suppress(sqlite3.Error):  # NOT NULL, or a name that another row has
            statement = f"UPDATE {table} SET {column} = ? WHERE {key}"
            db.execute(statement, (new, *(row[name] for name in KEYS[table])))
    for table, columns in HASHED_COLUMNS.items():
        for sha256 in {
            rows_of(table)[number]["sha256"] for of, number, *_ in changes if of == table
        }:
            db.execute(
                f"UPDATE {table} SET sha256 = row_hash({columns}) WHERE sha256 = ?", (sha256,)
            )
    db.close()
