"""The ledger: what was asked, what is done, what came out. SQLite (WAL) beside hashed artifacts."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rankscope.errors import UserError
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalKey,
    EvalRecord,
    HeadsRecord,
    ModelRecord,
    Provenance,
    Record,
    SpectraRecord,
    Status,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialSpec,
    trial_of,
)
from rankscope.store.artifacts import Artifact, ArtifactStore, Problem, reporting_disk_full
from rankscope.store.database import (
    SMALL_WRITE,
    connect,
    damaged,
    is_damaged,
    parse_record,
    record_row,
    stored_list,
    study_body,
    transaction,
)
from rankscope.store.groups import StoredGroups
from rankscope.store.history import check_other_model, check_other_tasks, same_machine
from rankscope.store.items import items_path
from rankscope.store.loading import load_study
from rankscope.store.lock import StudyLock
from rankscope.store.statuses import (
    UNTRAINED,
    TrialFailure,
    plan_again,
    set_status,
    stored_statuses,
)
from rankscope.store.verify import found_problems

LOCK = "ledger.lock"

PointKey = tuple[str, str, int]
"""Of one point of a curve: (trial id, task, optimizer steps done)."""


class Ledger:
    """State of one study under ``out``; a context manager that closes it.

    A stage stores what it made in one transaction: records, statuses and the names of the
    artifacts, all or nothing. Storing the same thing again changes nothing, and a stored result
    is never replaced. Whatever reads a damaged data base inside ``with`` ends in IntegrityError.
    """

    def __init__(self, out: Path, db: sqlite3.Connection, lock: StudyLock | None) -> None:
        self.out = out
        self._db = db
        self._lock = lock
        self._store = ArtifactStore(out)

    @classmethod
    def open(cls, out: Path, *, write: bool) -> Self:
        """Open the study in ``out``; with ``write``, create it where there is none.

        A writer holds the study's lock and begins by removing what a killed writer left behind.
        Raises StudyLocked, UserError (no study there, one of a later Rankscope, or a folder that
        is used for something else), IntegrityError (not a ledger) and DiskFull.
        """
        path = out / "ledger.sqlite"
        if not write and not path.is_file():
            raise UserError(
                f"{out}: there is no study here (no ledger.sqlite). Expected a folder that "
                "'rankscope run' or 'rankscope quickstart' wrote to."
            )
        if not write:
            return cls(out, connect(path, write=False), None)
        with reporting_disk_full(out.parent, lambda: SMALL_WRITE):
            try:
                out.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                raise UserError(f"{out}: cannot be used as a study folder ({error}).") from error
        lock = StudyLock(out / LOCK).acquire()
        try:
            with reporting_disk_full(out, lambda: SMALL_WRITE):
                ledger = cls(out, connect(path, write=True), lock)
            ledger._store.remove_unnamed({artifact.path for artifact in ledger.artifacts()})
        except BaseException as error:
            lock.release()
            if is_damaged(error):
                raise damaged(out, error) from error
            raise
        return ledger

    def close(self) -> None:
        """Close the data base and give the lock back."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if error is not None and is_damaged(error):
            raise damaged(self.out, error) from error

    # --- what was asked

    def put_study(
        self,
        name: str,
        config: Mapping[str, object],
        model: ModelRecord,
        tasks: Sequence[TaskRecord],
        provenance: Provenance,
    ) -> None:
        """Store what the study is made of, now.

        The study file may gain or lose arms, seeds and tasks between runs. Raises UserError where
        the stored results would no longer be comparable: another base model, dtype or prompt
        format, or other rows or another metric under a task's name.
        """
        stored_model = study_body(self._db, "model")
        if stored_model is not None:
            check_other_model(self.out, parse_record(ModelRecord, stored_model, "study"), model)
        known = {task.name: task for task in stored_list(self._db, "known_tasks", TaskRecord)}
        check_other_tasks(self.out, known, tasks)
        known.update((task.name, task) for task in tasks)
        history = stored_list(self._db, "provenance", Provenance)
        if not history or not same_machine(history[-1], provenance):
            history.append(provenance)
        bodies = {
            "name": json.dumps(name),
            "config": json.dumps(config, allow_nan=False),
            "model": model.model_dump_json(),
            "tasks": _json_list(tasks),
            "known_tasks": _json_list(known.values()),
            "provenance": _json_list(history),
        }
        with transaction(self._db, self.out):
            self._db.executemany("INSERT OR REPLACE INTO study VALUES (?, ?)", bodies.items())

    def put_notes(self, notes: Sequence[str]) -> None:
        """Replace what a reader of the results must know."""
        with transaction(self._db, self.out):
            self._db.execute(
                "INSERT OR REPLACE INTO study VALUES ('notes', ?)", (json.dumps(list(notes)),)
            )

    def put_trials(self, specs: Sequence[TrialSpec]) -> int:
        """Make ``specs``, in this order, the trials of the study; returns how many are new.

        Trials it had before and no longer has keep their results, but are left out of ``load``.
        """
        with transaction(self._db, self.out):
            before = self._count("trials")
            self._db.execute("UPDATE trials SET position = NULL")
            self._db.executemany(
                "INSERT INTO trials VALUES (?, ?, ?, 'planned', NULL) "
                "ON CONFLICT (trial_id) DO UPDATE SET position = excluded.position",
                [(spec.trial_id, i, spec.model_dump_json()) for i, spec in enumerate(specs)],
            )
            return self._count("trials") - before

    def put_groups(self, groups: StoredGroups) -> None:
        """Replace what the study trains together."""
        with transaction(self._db, self.out):
            self._db.execute(
                "INSERT OR REPLACE INTO study VALUES ('groups', ?)", (groups.model_dump_json(),)
            )

    def groups(self) -> StoredGroups | None:
        """What the study trains together; None before its first run said so."""
        body = study_body(self._db, "groups")
        return None if body is None else parse_record(StoredGroups, body, "study: groups")

    def add_seconds(self, seconds: float) -> None:
        """Add to the wall time spent on the study over all runs."""
        with transaction(self._db, self.out):
            total = float(study_body(self._db, "seconds") or 0.0) + seconds
            self._db.execute("INSERT OR REPLACE INTO study VALUES ('seconds', ?)", (repr(total),))

    # --- what came out

    def stage(self, expected_bytes: int | None = None) -> AbstractContextManager[Path]:
        """A fresh folder inside the study to write artifacts into; see ``ArtifactStore.stage``."""
        return self._store.stage(expected_bytes)

    def publish(self, staged: Path, relative: str) -> tuple[Artifact, ...]:
        """Move a staged file or folder to ``relative``; pass the result to a ``commit_...``.

        Where the ledger names that place already, what is stored stays and its rows are returned.
        Raises UserError for a name outside ``artifacts/``, DiskFull.
        """
        self._store.resolve(relative)
        return self.artifacts(relative) or self._store.publish(staged, relative)

    def commit_training(
        self,
        records: Sequence[TrainRecord],
        failures: Sequence[TrialFailure] = (),
        artifacts: Iterable[Artifact] = (),
    ) -> None:
        """Store one group's results in one transaction: all of it, or nothing.

        Raises IntegrityError for a number that is not finite, KeyError for an unknown trial.
        """
        rows = [record_row(record.trial_id, "train", "", record) for record in records]
        with transaction(self._db, self.out):
            self._insert(rows, artifacts)
            for record in records:
                set_status(self._db, record.trial_id, "trained", expected=UNTRAINED)
            for failure in failures:
                set_status(self._db, failure.trial_id, failure.status, failure.reason, UNTRAINED)

    def commit_curve(self, points: Sequence[CurvePoint]) -> None:
        """Store scores of trials that are training; a point that is stored already stays."""
        rows = [
            record_row(point.trial_id, "curve", f"{point.task}/{point.step}", point)
            for point in points
        ]
        with transaction(self._db, self.out):
            self._insert(rows, ())

    def commit_files(self, artifacts: Iterable[Artifact]) -> None:
        """Name published files that no record tells of, such as weights kept by the way."""
        with transaction(self._db, self.out):
            self._insert([], artifacts)

    def commit_evals(
        self, records: Sequence[EvalRecord], artifacts: Iterable[Artifact] = ()
    ) -> None:
        """Store evaluations with their per-item tables (published at ``items_path``)."""
        rows = [
            record_row(record.trial_id, "eval", f"{record.task}/{record.split}", record)
            for record in records
        ]
        with transaction(self._db, self.out):
            self._insert(rows, artifacts)
            for record in records:
                place = items_path(record.trial_id, record.task, record.split)
                if not self.artifacts(place):
                    raise KeyError(f"{place}: an evaluation is stored together with its items")

    def commit_spectra(
        self, records: Sequence[SpectraRecord], artifacts: Iterable[Artifact] = ()
    ) -> None:
        """Store the spectra of trials."""
        rows = [record_row(record.trial_id, "spectra", "", record) for record in records]
        with transaction(self._db, self.out):
            self._insert(rows, artifacts)

    def commit_heads(self, records: Sequence[HeadsRecord]) -> None:
        """Store what became of the attention heads of trials."""
        rows = [record_row(record.trial_id, "heads", "", record) for record in records]
        with transaction(self._db, self.out):
            self._insert(rows, ())

    def fail_trials(self, failures: Sequence[TrialFailure]) -> None:
        """Mark trials that cannot go on, whatever stage they are in."""
        with transaction(self._db, self.out):
            for failure in failures:
                set_status(self._db, failure.trial_id, failure.status, failure.reason)

    def retry_trials(self, trial_ids: Sequence[str]) -> None:
        """Plan failed trials again; a trial that was trained goes back to ``trained``."""
        with transaction(self._db, self.out):
            for trial_id in trial_ids:
                plan_again(self._db, trial_id)

    def finish_trials(self, trial_ids: Sequence[str]) -> None:
        """Mark trained trials whose every stage is stored as ``done``."""
        with transaction(self._db, self.out):
            for trial_id in trial_ids:
                set_status(self._db, trial_id, "done", expected=("trained",))

    # --- what is missing

    def trials(self) -> list[TrialSpec]:
        """The trials of the study as it is now, in order."""
        rows = self._db.execute(
            "SELECT spec FROM trials WHERE position IS NOT NULL ORDER BY position"
        )
        return [parse_record(TrialSpec, body, "trials") for (body,) in rows]

    def statuses(self) -> dict[str, Status]:
        """Status by trial id, for the trials of the study as it is now, in order."""
        return stored_statuses(self._db)

    def missing_evals(self, wanted: Iterable[EvalKey]) -> list[EvalKey]:
        """The evaluations of ``wanted`` that are not stored, in its order; failed trials' too."""
        rows = self._db.execute("SELECT trial_id, key FROM records WHERE kind = 'eval'")
        stored = set(rows)
        return [key for key in wanted if (key[0], f"{key[1]}/{key[2]}") not in stored]

    def missing_points(self, wanted: Iterable[PointKey]) -> list[PointKey]:
        """The points of curves of ``wanted`` that are not stored, in its order."""
        rows = self._db.execute("SELECT trial_id, key FROM records WHERE kind = 'curve'")
        stored = set(rows)
        return [key for key in wanted if (key[0], f"{key[1]}/{key[2]}") not in stored]

    def curve_point(self, key: PointKey) -> CurvePoint | None:
        """One point of a trial's curve; None where it is not stored."""
        row = self._db.execute(
            "SELECT body FROM records WHERE trial_id = ? AND kind = 'curve' AND key = ?",
            (key[0], f"{key[1]}/{key[2]}"),
        ).fetchone()
        return None if row is None else parse_record(CurvePoint, row[0], f"curve of {key[0]}")

    def missing_spectra(self) -> list[TrialSpec]:
        """Trained trials without spectra, in order."""
        return self._trained_without("spectra")

    def missing_heads(self) -> list[TrialSpec]:
        """Trained trials whose attention heads were not looked at, in order."""
        return self._trained_without("heads")

    def _trained_without(self, kind: Literal["spectra", "heads"]) -> list[TrialSpec]:
        rows = self._db.execute("SELECT trial_id FROM records WHERE kind = ?", (kind,))
        stored = {trial_id for (trial_id,) in rows}
        statuses = self.statuses()
        return [
            spec
            for spec in self.trials()
            if spec.trial_id not in stored and statuses[spec.trial_id] in ("trained", "done")
        ]

    # --- reading

    def artifacts(self, below: str | None = None) -> tuple[Artifact, ...]:
        """What the ledger names: all, or the file ``below`` and the files under it."""
        if below is None:
            rows = self._db.execute("SELECT path, sha256, bytes FROM artifacts ORDER BY path")
        else:
            rows = self._db.execute(
                "SELECT path, sha256, bytes FROM artifacts "
                "WHERE path = ?1 OR (path > ?1 || '/' AND path < ?1 || '0') ORDER BY path",
                (below,),  # '0' follows '/' in ASCII, so the range is everything below
            )
        return tuple(Artifact(*row) for row in rows)

    def checked_path(self, relative: str) -> Path:
        """The place of a stored file or folder, after comparing every hash in it.

        Raises IntegrityError where something is missing or altered.
        """
        return self._store.checked_path(relative, self.artifacts(relative))

    def load(self) -> StudyRecords:
        """Everything known of the study as it is now; per-item tables are read when asked for,
        also after the ledger was closed.

        Raises UserError where no run has got as far as storing a study, IntegrityError where a
        stored record was altered.
        """
        return load_study(self._db, self._store, self.artifacts("artifacts"))

    def verify(self) -> list[Problem]:
        """Re-hash every record and artifact; an empty list means all is as it was written."""
        return found_problems(self._db, self._store, self.artifacts)

    def _insert(self, rows: Sequence[tuple[str, ...]], artifacts: Iterable[Artifact]) -> None:
        known = {BASE, *(row[0] for row in self._db.execute("SELECT trial_id FROM trials"))}
        for row in rows:
            if trial_of(row[0]) not in known:
                raise KeyError(f"trial {row[0]!r} is not in the ledger")
        self._db.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?)", rows)
        self._db.executemany(
            "INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?)",
            [(a.path, a.sha256, a.num_bytes) for a in artifacts],
        )

    def _count(self, table: Literal["trials"]) -> int:
        return int(self._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def _json_list(records: Iterable[Record]) -> str:
    return json.dumps([record.model_dump(mode="json") for record in records])
