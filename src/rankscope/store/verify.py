"""Compare everything that a study stored with its hashes, and the ledger with itself."""

import sqlite3
from collections.abc import Iterator
from pathlib import PurePosixPath

from rankscope.errors import IntegrityError
from rankscope.records import StudyRecords
from rankscope.store.artifacts import Artifact, ArtifactStore, Problem
from rankscope.store.database import has_study, is_damaged, row_sha256
from rankscope.store.items import items_path, weights_path
from rankscope.store.loading import load_study

HASHED_ROWS = """
SELECT kind || ' record ' || trial_id || ' ' || key, sha256, body, settings FROM records
UNION ALL SELECT 'trial ' || trial_id, sha256, trial_id, spec FROM trials
UNION ALL SELECT 'study entry ' || key, sha256, key, body FROM study
"""
SOUND = "a sound data base"


def find_problems(db: sqlite3.Connection, store: ArtifactStore, *, quick: bool) -> list[Problem]:
    """Differences from what was written; ``quick`` compares sizes of artifacts, not hashes."""
    problems: list[Problem] = []
    try:
        for problem in _each_problem(db, store, quick):
            problems.append(problem)  # one by one: those found before a damaged page count
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        problems.append(Problem("ledger.sqlite", SOUND, str(error)))
    return problems


def _each_problem(db: sqlite3.Connection, store: ArtifactStore, quick: bool) -> Iterator[Problem]:
    for (message,) in db.execute("PRAGMA integrity_check"):
        if message != "ok":
            yield Problem("ledger.sqlite", SOUND, message)
    altered = False
    for row, digest, *texts in db.execute(HASHED_ROWS):
        now = row_sha256(*texts)
        if now != digest:
            altered = True
            place = f"ledger.sqlite: {row}".rstrip()
            yield Problem(place, f"sha256 {digest}", f"sha256 {now}")
    rows = db.execute("SELECT path, sha256, bytes FROM artifacts ORDER BY path")
    artifacts = tuple(Artifact(*row) for row in rows)
    yield from filter(None, (store.check(artifact, quick=quick) for artifact in artifacts))
    if not altered:  # else the altered rows cannot be read
        yield from _contradictions(db, store, artifacts)


def _contradictions(
    db: sqlite3.Connection, store: ArtifactStore, artifacts: tuple[Artifact, ...]
) -> Iterator[Problem]:
    """What the tables of a ledger must agree on: a result has its record and its files."""
    try:
        if not has_study(db):
            return
        study = load_study(db, store, artifacts)
    except IntegrityError as error:
        yield Problem("ledger.sqlite", "readable records", str(error))
        return
    paths = [PurePosixPath(artifact.path) for artifact in artifacts]
    named = {str(place) for path in paths for place in (path, *path.parents)}
    for path in _expected_files(study):
        if path not in named:
            yield Problem(path, "an artifact that the ledger names", "none")
    for trial in study.trials:
        if trial.status in ("trained", "done") and trial.train is None:
            place = f"ledger.sqlite: trial {trial.spec.trial_id}"
            yield Problem(place, f"a training record, as it is {trial.status!r}", "none")


def _expected_files(study: StudyRecords) -> Iterator[str]:
    yield from (weights_path(trial.spec) for trial in study.trials if trial.train is not None)
    yield from (items_path(*key) for key in study.evals)
