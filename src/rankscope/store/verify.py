"""Comparison of everything that a study stored with its hashes."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from rankscope.errors import DiskFull, IntegrityError, UserError
from rankscope.filesystem import fsync, replace_text
from rankscope.hashing import SUMS, matches_sums, sha256_file, sums_text
from rankscope.store.artifacts import CHECKPOINTS, UNIT_ORDER, UNITS, Artifact, ArtifactStore
from rankscope.store.database import closed_by_errors, connect, holds_bytes, is_damaged, snapshot
from rankscope.store.row_hashes import LEDGER, LEDGER_REMEDY, changed_rows

CLOSED = "ledger.sha256"
"""Hashes of the files that only a run writes, from the moment when it closed the ledger. A run
removes this file first, so it is missing while one is open, or after one was killed."""
CLOSED_FILES = (LEDGER, "log.jsonl", "study.resolved.yaml")
OUTPUT_FILES = ("recommendation.json", "report.html")
"""Files that ``run`` and ``report`` write for a reader; their hashes are in ``SHA256SUMS``."""


def ledger_file(out: Path) -> Path:
    """Return the ledger of the study in ``out``.

    Raises UserError: there is none. Raises IntegrityError: it is lost.
    """
    _check_not_lost(out)
    if not holds_bytes(out / LEDGER):
        expected = "a folder that 'rankscope run' or 'rankscope quickstart' wrote to"
        raise UserError(out, f"no study here (no {LEDGER})", expected, "give its path")
    return out / LEDGER


def _check_not_lost(out: Path) -> None:
    if (out / CLOSED).is_file() and not holds_bytes(out / LEDGER):
        found = "an empty file" if (out / LEDGER).exists() else "no file"
        expected = f"the ledger that {CLOSED} names"
        raise IntegrityError(out / LEDGER, found, expected, LEDGER_REMEDY)


def find_problems(out: Path, *, quick: bool = False) -> list[IntegrityError]:
    """Find differences between a study and what was written, named by places in its folder.

    ``quick`` compares the sizes of artifacts instead of their hashes, and leaves out checkpoints.
    Raises UserError: another version wrote the ledger. Raises IntegrityError: the ledger is lost.
    """
    ledger, store = ledger_file(out), ArtifactStore(out)
    problems: list[IntegrityError] = []
    closed = _changed_files(out, CLOSED, CLOSED_FILES)
    is_known = (out / CLOSED).is_file() and LEDGER not in closed
    try:
        with closing(connect(ledger, write=False)) as db:
            db.execute("BEGIN")  # one state, also while a run writes
            # Problems come one by one: those before a damaged page count.
            for where, expected, found in () if quick and is_known else _table_problems(db):
                problems.append(IntegrityError(where, found, expected, LEDGER_REMEDY))
            if LEDGER in closed and not problems:
                remedy = f"every row is as it was written: to accept the file, remove {CLOSED}"
                problems.append(IntegrityError(LEDGER, *closed[LEDGER], remedy))
            problems += _artifact_problems(db, store, quick)
    except (sqlite3.DatabaseError, IntegrityError, UserError) as error:
        if not (is_damaged(error) or LEDGER in closed or isinstance(error, IntegrityError)):
            raise
        found = str(error.__cause__ or error)
        problems.append(IntegrityError(LEDGER, found, "a sound data base", LEDGER_REMEDY))
    for name in CLOSED_FILES[1:]:
        if name in closed:
            do = "no result depends on it; run again"
            problems.append(IntegrityError(name, *closed[name], do))
    for name, differing in _changed_files(out, SUMS, (*OUTPUT_FILES, UNIT_ORDER)).items():
        remedy = f"write it again: rankscope report {store.shown}"
        if name == UNIT_ORDER:
            remedy = f"remove {store.shown} to run it again"
        problems.append(IntegrityError(name, *differing, remedy))
    if not quick:
        problems += _checkpoint_problems(out)
    for order in sorted((out / UNITS).glob(f"*/{UNIT_ORDER}")):
        unit = order.parent.relative_to(out).as_posix()
        remedy = f"remove {unit} to run it again"
        lost = [IntegrityError(LEDGER, "no file", "a ledger")]
        is_there = (order.parent / LEDGER).is_file()
        of_unit = find_problems(order.parent, quick=quick) if is_there else lost
        problems += [
            IntegrityError(f"{unit}/{p.where}", p.found, p.expected, remedy) for p in of_unit
        ]
    return problems


def _table_problems(db: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield (place, expected, found) of everything in the ledger's tables that no run wrote."""
    for (message,) in db.execute("PRAGMA integrity_check"):
        if message != "ok":
            yield LEDGER, "a sound data base", message
    yield from changed_rows(db)


def _artifact_problems(
    db: sqlite3.Connection, store: ArtifactStore, quick: bool
) -> Iterator[IntegrityError]:
    sizes = store.sizes() if quick else {}
    rows = db.execute("SELECT path, file_sha256, bytes FROM artifacts ORDER BY path")
    for artifact in [Artifact(*row) for row in rows if sizes.get(row[0]) != row[2]]:
        try:
            if problem := store.check(artifact, quick=quick):
                yield problem
        except UserError:
            found, remedy = "a link that leads out of it", "put the file itself there"
            yield IntegrityError(artifact.path, found, "a file of the study", remedy)


def _checkpoint_problems(out: Path) -> Iterator[IntegrityError]:
    for folder in sorted((out / CHECKPOINTS).glob("*/step-*")):
        try:
            is_whole = matches_sums(folder)
        except OSError:
            is_whole = False
        if not is_whole and (folder / SUMS).is_file():  # else a run has just replaced it
            path = folder.relative_to(out).as_posix()
            remedy = f"remove {Path(path).parent} to train the group from its beginning"
            yield IntegrityError(path, "others", f"the hashes of its {SUMS}", remedy)


def _changed_files(out: Path, sums: str, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return (found, expected) of each named file that differs from a list of hashes, by name.

    A file that no list names may be missing. A name can have two hashes while its file is replaced.
    A missing list counts as one that names no file. ``CLOSED`` may be missing, while a run is open.
    """
    while True:
        listed = _content(out / sums)
        is_open = listed is None and sums == CLOSED
        changed = {} if is_open else dict(_changed(out, sums, listed or b"", names))
        if _content(out / sums) == listed:  # else a run began or ended meanwhile
            return changed


def _changed(
    out: Path, sums: str, listed: bytes, names: Sequence[str]
) -> Iterator[tuple[str, tuple[str, str]]]:
    lines = listed.decode(errors="replace").splitlines(keepends=True)
    for name in names:
        expected = [line[:64] for line in lines if line.endswith(f"  {name}\n")]
        is_there = (out / name).is_file()
        digest = sha256_file(out / name) if is_there else ""
        if digest not in expected and (is_there or expected):
            wanted = f"sha256 {expected[-1] if expected else f'in {sums}'}"
            yield name, (f"sha256 {digest}" if is_there else "no file", wanted)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def open_checked(out: Path, *, write: bool) -> sqlite3.Connection:
    """Connect to the ledger of a study after checking it; a writer makes a missing one.

    A ledger that a run closed is compared with its hash, another one row by row. Raises
    IntegrityError: something in it does not come from a run.
    """
    _check_not_lost(out)
    for found, expected in _changed_files(out, CLOSED, (LEDGER,)).values():
        expected = f"{expected}, which it had when it was closed"
        do = f"'rankscope verify {out}' shows what was changed and what to do"
        raise IntegrityError(out / LEDGER, found, expected, do)
    is_known = (out / CLOSED).is_file()
    db = connect(out / LEDGER, write=write)
    with closed_by_errors(db, out):
        if not is_known:
            with snapshot(db):
                for where, expected, found in _table_problems(db):
                    raise IntegrityError(out / where, found, expected, LEDGER_REMEDY)
    return db


def mark_open(out: Path) -> None:
    """Remove the hashes of a closed ledger before it changes."""
    (out / CLOSED).unlink(missing_ok=True)
    fsync(out)


def mark_closed(out: Path) -> None:
    """Store the hashes of a closed ledger; a disk without room for them leaves it without."""
    with suppress(OSError, DiskFull):
        replace_text(out / CLOSED, sums_text(out, CLOSED_FILES))
