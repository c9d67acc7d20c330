"""The ledger of a study: its trials, their state and their results. SQLite and hashed artifacts."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from pydantic import FiniteFloat

from rankscope.errors import reporting_shortages
from rankscope.records import (
    BASE,
    FAILED,
    CurvePoint,
    EvalKey,
    ModelRecord,
    Provenance,
    RoundRecord,
    Status,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialSpec,
    trial_of,
)
from rankscope.store.artifacts import ARTIFACTS, CHECKPOINTS, Artifact, ArtifactStore
from rankscope.store.database import (
    SMALL_WRITE,
    UNTRAINED,
    PointKey,
    StoredGroups,
    StoredRecord,
    TrialFailure,
    eval_key,
    has_study,
    is_whole_file,
    json_list,
    ledger_error,
    record_row,
    required,
    set_statuses,
    snapshot,
    stored,
    stored_records,
    stored_statuses,
    stored_trials,
    transaction,
)
from rankscope.store.history import (
    check_same_model,
    check_same_name,
    check_same_tasks,
    check_same_versions,
)
from rankscope.store.loading import load_study
from rankscope.store.lock import StudyLock, make_study_folder
from rankscope.store.row_hashes import LEDGER
from rankscope.store.verify import ledger_file, mark_closed, mark_open, open_checked

BELOW = "WHERE path = ?1 OR (path > ?1 || '/' AND path < ?1 || '0')"
"""Condition for an artifact's path and everything below it: '0' follows '/' in ASCII."""


class Ledger:
    """State of one study under ``out``; a context manager that closes it.

    A stage stores its records, statuses and the names of its artifacts in one transaction. Storing
    the same thing again changes nothing, and a stored result is never replaced. Reading a damaged
    data base inside ``with`` raises IntegrityError.
    """

    def __init__(self, out: Path, db: sqlite3.Connection, lock: StudyLock | None) -> None:
        self.out = out
        self._db = db
        self._lock = lock
        self._store = ArtifactStore(out)
        self._keys: set[tuple[str, str, str]] | None = None

    @classmethod
    def open(cls, out: Path, *, write: bool, take_over: bool = False) -> Self:
        """Open the study in ``out``; with ``write``, create it if there is none.

        A writer holds the study's lock, and first removes the leftovers of a killed writer. With
        ``take_over`` it also takes a lock from another machine. Raises StudyLocked; UserError for a
        folder without a study or in other use; IntegrityError for an altered ledger; DiskFull.
        """
        if not write:
            with reporting_shortages(ledger_file(out)):
                return cls(out, open_checked(out, write=False), None)
        make_study_folder(out, take_over)
        with reporting_shortages(out / "ledger.lock", lambda: "one line"):
            lock = StudyLock(out / "ledger.lock").acquire(take_over=take_over)
        try:
            with reporting_shortages(out / LEDGER, lambda: SMALL_WRITE):
                ledger = cls(out, open_checked(out, write=True), lock)
                mark_open(out)
            ledger._store.remove_unnamed({artifact.path for artifact in ledger.artifacts()})
        except BaseException as error:
            lock.release()
            if isinstance(error, sqlite3.Error) and (known := ledger_error(out, error)):
                raise known from error
            raise
        return ledger

    @classmethod
    def read(cls, out: Path, *, with_analyses: bool = True) -> StudyRecords:
        """Load all records of the study in ``out``, see :meth:`load`."""
        with cls.open(out, write=False) as ledger:
            return ledger.load(with_analyses=with_analyses)

    def close(self) -> None:
        """Close the data base; a hash then identifies a writer's last state."""
        is_whole = self._lock is not None and is_whole_file(self._db)
        self._db.close()
        if self._lock is not None:
            if is_whole and self._lock.is_in_place():
                mark_closed(self.out)
            self._lock.release()

    def check_in_place(self) -> None:
        """Raise UserError if the study's folder was moved or removed since a writer opened it."""
        if self._lock is not None:
            self._lock.check_in_place()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, sqlite3.Error) and (known := ledger_error(self.out, error)):
            raise known from error

    # --- the study

    def put_study(
        self,
        name: str,
        config: Mapping[str, object],
        model: ModelRecord,
        tasks: Sequence[TaskRecord],
        provenance: Provenance,
    ) -> None:
        """Store the current parts of the study, which may gain or lose arms, seeds and tasks
        between runs.

        ``provenance`` is that of a first run; see :meth:`add_provenance`. Raises UserError for the
        folder of a study with another name, and if stored results would no longer be comparable.
        That is another base model, dtype or prompt format, or other validation or test rows, or
        another metric, under a task's name.
        """
        if has_study(self._db):
            check_same_name(self.out, required(self._db, "name", str), name)
            check_same_model(self.out, required(self._db, "model", ModelRecord), model)
        known_tasks = stored(self._db, "known_tasks", list[TaskRecord]) or []
        known = {task.name: task for task in known_tasks}
        check_same_tasks(self.out, known, tasks)
        known.update((task.name, task) for task in tasks)
        history = stored(self._db, "provenance", list[Provenance]) or [provenance]
        self._put(
            name=json.dumps(name),
            config=json.dumps(config, allow_nan=False),
            model=model.model_dump_json(),
            tasks=json_list(tasks),
            known_tasks=json_list(known.values()),
            provenance=json_list(history),
        )

    def add_provenance(self, provenance: Provenance, *, allow_mixed: bool) -> None:
        """Store the versions and machine that compute results from now on.

        Raises UserError for versions that differ from those of the stored results or checkpoints,
        unless ``allow_mixed``.
        """
        history = required(self._db, "provenance", list[Provenance])
        is_begun = self._record_keys() or any((self.out / CHECKPOINTS).glob("*/step-*"))
        if is_begun and not allow_mixed:
            check_same_versions(self.out, history[-1], provenance)
        if history[-1].model_copy(update={"created": provenance.created}) != provenance:
            self._put(provenance=json_list([*history, provenance]))

    def kernels(self) -> str | None:
        """Return ``train.kernels`` of the stored study; None without one."""
        config = stored(self._db, "config", dict[str, Any])
        return None if config is None else str(config["train"]["kernels"])

    def put_notes(self, notes: Sequence[str]) -> None:
        self._put(notes=json.dumps(list(notes)))

    def put_trials(self, specs: Sequence[TrialSpec]) -> int:
        """Make ``specs``, in this order, the trials of the study; return how many are new.

        Trials that are no longer in the study keep their results, but ``load`` omits them.
        """
        with transaction(self._db, self.out):
            count = "SELECT COUNT(*) FROM trials"
            before = int(self._db.execute(count).fetchone()[0])
            self._db.execute(
                "UPDATE trials SET position = NULL, "
                "sha256 = row_sha256(trial_id, NULL, spec, status, failure)"
            )
            self._db.executemany(
                "INSERT INTO trials VALUES (?1, ?2, ?3, 'planned', NULL, "
                "row_sha256(?1, ?2, ?3, 'planned', NULL)) "
                "ON CONFLICT (trial_id) DO UPDATE SET position = excluded.position, "
                "spec = excluded.spec, sha256 = "
                "row_sha256(trial_id, excluded.position, excluded.spec, status, failure)",
                [(spec.trial_id, n, spec.model_dump_json()) for n, spec in enumerate(specs)],
            )
            return int(self._db.execute(count).fetchone()[0]) - before

    def put_groups(self, groups: StoredGroups) -> None:
        self._put(groups=groups.model_dump_json())

    def groups(self) -> StoredGroups | None:
        return stored(self._db, "groups", StoredGroups)

    def put_rounds(self, rounds: Sequence[RoundRecord]) -> None:
        """Store a search's decisions on what to train, round by round."""
        self._put(rounds=json_list(rounds))

    def rounds(self) -> list[RoundRecord]:
        return stored(self._db, "rounds", list[RoundRecord]) or []

    def add_seconds(self, seconds: float) -> None:
        self._put(seconds=repr((stored(self._db, "seconds", FiniteFloat) or 0.0) + seconds))

    def _put(self, **bodies: str) -> None:
        with transaction(self._db, self.out):
            self._db.executemany(
                "INSERT INTO study VALUES (?1, row_sha256(?1, ?2), ?2) "
                "ON CONFLICT (key) DO UPDATE SET body = excluded.body, sha256 = excluded.sha256",
                list(bodies.items()),
            )

    # --- results

    def stage(self) -> AbstractContextManager[Path]:
        return self._store.stage()

    def publish(self, staged: Path, relative: str) -> tuple[Artifact, ...]:
        """Move a staged file or folder to ``relative``; pass the result to a ``commit``.

        If the ledger names that place already, the stored files stay and their rows are returned.
        """
        self._store.resolve(relative)
        return self.artifacts(relative) or self._store.publish(staged, relative)

    def commit(
        self,
        records: Sequence[StoredRecord] = (),
        artifacts: Iterable[Artifact] = (),
        settings: Mapping[str, str] | None = None,
        failures: Sequence[TrialFailure] = (),
    ) -> None:
        """Store records and artifacts together, with the trials that were trained or failed.

        An evaluation comes with its items, at ``items_path``. ``settings`` holds, by trial id, what
        records depend on besides the trial; a later run with other settings is refused. Raises
        IntegrityError for a number that is not finite, KeyError for training of an unknown trial.
        """
        of_trial = settings or {}
        rows = [record_row(record, of_trial.get(record.trial_id, "")) for record in records]
        with transaction(self._db, self.out):
            self._insert(rows, artifacts)
            for record in records:
                if isinstance(record, TrainRecord):
                    set_statuses(self._db, [record.trial_id], "trained", expected=UNTRAINED)
            for failure in failures:
                set_statuses(self._db, [failure.trial_id], *failure[1:], expected=UNTRAINED)

    def fail_trials(self, failures: Sequence[TrialFailure]) -> None:
        with transaction(self._db, self.out):
            for failure in failures:
                set_statuses(self._db, [failure.trial_id], *failure[1:])

    def retry_trials(self, trial_ids: Sequence[str]) -> None:
        """Plan failed or skipped trials again; trials that were trained become ``trained``
        again."""
        trained = {trial_id for kind, trial_id, _ in self._record_keys() if kind == "train"}
        named = set(trial_ids)
        left: frozenset[Status] = FAILED | {"skipped"}
        with transaction(self._db, self.out):
            set_statuses(self._db, named & trained, "trained", expected=left)
            set_statuses(self._db, named - trained, "planned", expected=left)

    def skip_trials(self, trial_ids: Collection[str], reason: str) -> None:
        """Skip trials that never began; a search ends without them."""
        with transaction(self._db, self.out):
            set_statuses(self._db, trial_ids, "skipped", reason, expected={"planned", "skipped"})

    def repeat_trials(self, trial_ids: Collection[str]) -> None:
        """Remove all results of some trials, or of the base, so that they are computed again."""
        with transaction(self._db, self.out):
            for i in trial_ids:
                self._db.execute("DELETE FROM records WHERE trial_id = ?", (i,))
                self._db.execute(f"DELETE FROM artifacts {BELOW}", (f"{ARTIFACTS}/{i}",))
            set_statuses(self._db, [i for i in trial_ids if i != BASE], "planned")
        self._keys = None
        self._store.remove_unnamed({artifact.path for artifact in self.artifacts()})

    def finish_trials(self, trial_ids: Sequence[str]) -> None:
        with transaction(self._db, self.out):
            set_statuses(self._db, trial_ids, "done", expected={"trained"})

    def _insert(self, rows: Sequence[tuple[str, ...]], artifacts: Iterable[Artifact]) -> None:
        self._keys = None  # read again when asked for
        self._db.executemany("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._db.executemany(
            "INSERT OR IGNORE INTO artifacts VALUES (?1, ?2, ?3, row_sha256(?1, ?2, ?3))",
            [(a.path, a.sha256, a.num_bytes) for a in artifacts],
        )

    # --- what is missing

    def trials(self) -> list[TrialSpec]:
        return [spec for spec, _, _ in stored_trials(self._db)]

    def statuses(self, trial_ids: Collection[str] | None = None) -> dict[str, Status]:
        """Return the status of all current trials of the study, or of the named ones."""
        return {trial_id: status for trial_id, _, status, _ in stored_statuses(self._db, trial_ids)}

    def missing_evals(self, wanted: Iterable[EvalKey]) -> list[EvalKey]:
        """Return the evaluations of ``wanted`` that are not stored, in its order; failed trials'
        too."""
        keys = self._record_keys()
        return [key for key in wanted if ("eval", trial_of(key[0]), eval_key(*key)) not in keys]

    def without_record(self, kind: str, trials: Sequence[TrialSpec]) -> list[TrialSpec]:
        """Return the trained ones of ``trials`` without a record of a kind, in order; prompts
        excepted."""
        keys, statuses = self._record_keys(), self.statuses()
        trained = [t for t in trials if statuses[t.trial_id] in ("trained", "done")]
        trained = [trial for trial in trained if trial.prompt is None]
        return [trial for trial in trained if (kind, trial.trial_id, "") not in keys]

    def _record_keys(self) -> set[tuple[str, str, str]]:
        if self._keys is None:
            self._keys = set(self._db.execute("SELECT kind, trial_id, key FROM records"))
        return self._keys

    # --- reading

    def record_settings(self) -> Iterator[tuple[str, str, str]]:
        """Yield (kind, trial id, settings) of all records that depend on settings."""
        yield from self._db.execute(
            "SELECT DISTINCT kind, trial_id, settings FROM records WHERE settings != ''"
        )

    def curve_points(self, trials: Sequence[TrialSpec]) -> dict[PointKey, CurvePoint]:
        ids = {trial.trial_id for trial in trials}
        return {
            (point.trial_id, point.task, point.step): point
            for trial_id, point in stored_records(self._db, CurvePoint)
            if trial_id in ids
        }

    def artifacts(self, below: str | None = None) -> tuple[Artifact, ...]:
        """Return the artifacts in the ledger: all, or the file ``below`` and the files under it."""
        where, values = ("", ()) if below is None else (BELOW, (below,))
        query = f"SELECT path, file_sha256, bytes FROM artifacts {where} ORDER BY path"
        return tuple(Artifact(*row) for row in self._db.execute(query, values))

    def checked_path(self, relative: str) -> Path:
        """Return the path of a stored file or folder after comparing every hash in it."""
        return self._store.checked_path(relative, self.artifacts(relative))

    def load(self, *, with_analyses: bool = True) -> StudyRecords:
        """Load all records of the current study; per-item tables are read on demand.

        Records of analyses, the largest, are left out without ``with_analyses``.
        """
        with snapshot(self._db):
            return load_study(self._db, self._store, self.artifacts(), with_analyses=with_analyses)
