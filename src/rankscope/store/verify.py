"""Compare everything that a study stored with its hashes."""

import sqlite3
from collections.abc import Callable, Iterator

from rankscope.store.artifacts import Artifact, ArtifactStore, Problem
from rankscope.store.database import body_sha256, is_damaged

SOUND = "a sound data base"


def find_problems(
    db: sqlite3.Connection,
    store: ArtifactStore,
    artifacts: Callable[[], tuple[Artifact, ...]],
    *,
    quick: bool,
) -> list[Problem]:
    """Differences from what was written.

    ``artifacts()`` returns what the ledger names; it fails for a damaged one. ``quick`` compares
    the sizes of artifacts instead of their hashes.
    """
    problems: list[Problem] = []
    try:
        for problem in _each_problem(db, store, artifacts, quick):
            problems.append(problem)  # one by one: those found before a damaged page count
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        problems.append(Problem("ledger.sqlite", SOUND, str(error)))
    return problems


def _each_problem(
    db: sqlite3.Connection,
    store: ArtifactStore,
    artifacts: Callable[[], tuple[Artifact, ...]],
    quick: bool,
) -> Iterator[Problem]:
    for (message,) in db.execute("PRAGMA integrity_check"):
        if message != "ok":
            yield Problem("ledger.sqlite", SOUND, message)
    for trial_id, kind, key, body, digest, settings in db.execute("SELECT * FROM records"):
        now = body_sha256(body, settings)
        if now != digest:
            place = f"ledger.sqlite: {kind} record {trial_id} {key}".rstrip()
            yield Problem(place, f"sha256 {digest}", f"sha256 {now}")
    yield from filter(None, (store.check(artifact, quick=quick) for artifact in artifacts()))
