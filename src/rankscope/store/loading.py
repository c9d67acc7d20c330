"""Paths of artifacts, and all records of a study.

Per-item scores are read on demand, so a study of a thousand trials opens in seconds.
"""

import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import FiniteFloat

from rankscope.analyses import all_analyses
from rankscope.config.study import StudyConfig
from rankscope.errors import IntegrityError, UserError, reading
from rankscope.formatting import count
from rankscope.records import (
    BASE,
    GOLD_COLUMNS,
    ITEM_SCHEMA,
    CurvePoint,
    EvalKey,
    EvalRecord,
    ItemResult,
    ItemScores,
    ModelRecord,
    Provenance,
    RoundRecord,
    ScoredModel,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    TrialSpec,
    gold_logprobs_per_token,
    results_of,
    trial_of,
    variant_label,
)
from rankscope.store.artifacts import ARTIFACTS, Artifact, ArtifactStore
from rankscope.store.database import has_study, required, stored, stored_records, stored_trials
from rankscope.store.history import mixed_versions_notes

WRITTEN_ROWS = f"{ARTIFACTS}/{BASE}/rows"
Value = TypeVar("Value")
COLUMNS = ["item_id", "subject", "score", *GOLD_COLUMNS]


def weights_path(spec: TrialSpec, below: str = "") -> str:
    return f"artifacts/{spec.trial_id}/{below}{'model' if spec.is_full else 'adapter'}"


def snapshot_path(spec: TrialSpec, step: int) -> str:
    return weights_path(spec, f"steps/{step}/")


def rows_path(sha256: str) -> str:
    """Return the path of rows that the base wrote; ``sha256`` identifies how."""
    return f"{WRITTEN_ROWS}/{sha256[:16]}.jsonl"


def items_path(model: ScoredModel, task: str, split: str, kind: str = "items") -> str:
    """Return the place of items, or of an engine's table with its name as ``kind``.

    A variant's files go below its trial's.
    """
    folder = PurePosixPath("artifacts", trial_of(model), variant_label(model), kind)
    return f"{folder}/{task}.{split}.parquet"


def load_study(
    db: sqlite3.Connection,
    store: ArtifactStore,
    artifacts: Sequence[Artifact],
    *,
    with_analyses: bool,
) -> StudyRecords:
    if not has_study(db):
        raise UserError(
            store.out, "a ledger in which no run has stored a study yet", "one", "run it first"
        )
    tasks = tuple(stored(db, "tasks", list[TaskRecord]) or ())
    task_names = {task.name for task in tasks}
    trials = tuple(_trial_records(db, task_names, with_analyses))
    shown = {BASE, *(trial.spec.trial_id for trial in trials)}
    evals = {
        record.key: record
        for trial_id, record in stored_records(db, EvalRecord)
        if trial_id in shown and record.task in task_names
    }
    history = required(db, "provenance", list[Provenance])
    tables = _ItemTables(store, artifacts)
    return StudyRecords(
        name=required(db, "name", str),
        config=required(db, "config", StudyConfig),
        model=required(db, "model", ModelRecord),
        tasks=tasks,
        trials=trials,
        evals=evals,
        items=_ByEvaluation(evals, cache(tables.scores)),
        results=_ByEvaluation(evals, tables.results),
        provenance=history[-1],
        rounds=tuple(stored(db, "rounds", list[RoundRecord]) or ()),
        total_seconds=stored(db, "seconds", FiniteFloat) or 0.0,
        notes=(
            *(stored(db, "notes", list[str]) or ()),
            *_earlier_trials_notes(db),
            *mixed_versions_notes(history),
        ),
    )


def _trial_records(
    db: sqlite3.Connection, tasks: Container[str], with_analyses: bool
) -> Iterator[TrialRecords]:
    train = dict(stored_records(db, TrainRecord))
    types = [t for a in all_analyses() if with_analyses and (t := a.record_type()) is not None]
    analyses = [dict(stored_records(db, kind)) for kind in types]
    curves: dict[str, list[CurvePoint]] = {}
    for trial_id, point in stored_records(db, CurvePoint):
        if point.task in tasks:
            curves.setdefault(trial_id, []).append(point)
    for spec, status, failure in stored_trials(db):
        yield TrialRecords(
            spec,
            status,
            failure,
            train=train.get(spec.trial_id),
            analyses=tuple(r[spec.trial_id] for r in analyses if spec.trial_id in r),
            curve=tuple(sorted(curves.get(spec.trial_id, ()), key=lambda point: point.step)),
        )


def _earlier_trials_notes(db: sqlite3.Connection) -> Iterator[str]:
    (earlier,) = db.execute("SELECT COUNT(*) FROM trials WHERE position IS NULL").fetchone()
    if earlier:
        yield (
            "Kept in the ledger and not shown here: "
            f"{count(earlier, 'trial')} of an earlier form of this study."
        )


class _ItemTables:
    """The per-item tables of a study; each file is compared with its hash before it is read."""

    def __init__(self, store: ArtifactStore, artifacts: Iterable[Artifact]) -> None:
        self._store = store
        self._artifacts = {artifact.path: artifact for artifact in artifacts}
        self._names: dict[tuple[str, str], tuple[Any, ...]] = {}
        """Names of items by task and split: as a table to compare, and as tuples."""

    def read(self, key: EvalKey, columns: Sequence[str]) -> pa.Table:
        """Read columns of the table of one evaluation. Raises IntegrityError for an altered
        file."""
        name = items_path(*key)
        artifact = self._artifacts.get(name)
        path = self._store.checked_path(name, () if artifact is None else (artifact,))
        with reading(path, "a table of item scores", IntegrityError):
            table = pq.ParquetFile(path).read(columns=list(columns))
        # A KeyError later on would read as "this model has no scores".
        if missing := set(columns) - set(table.column_names):
            found = f"no column {min(missing)!r}, as another version of Rankscope wrote this study"
            raise IntegrityError(path, found, "all columns", "run it again with another --out")
        return table

    def scores(self, key: EvalKey) -> ItemScores:
        """Return the scores of one evaluation.

        Models scored on the same items share one tuple of names, which saves most memory.
        """
        table = self.read(key, COLUMNS)
        names = table.select(COLUMNS[:2])
        known = self._names.get(key[1:])
        if known is None or not known[0].equals(names):
            known = names, *(tuple(names[column].to_pylist()) for column in COLUMNS[:2])
            self._names.setdefault(key[1:], known)
        _, item_ids, subjects = known
        return ItemScores(
            item_ids=item_ids,
            scores=np.asarray(table["score"].to_numpy(), dtype=np.float64),
            gold_logprobs=gold_logprobs_per_token(table),
            subjects=subjects,
        )

    def results(self, key: EvalKey) -> list[ItemResult]:
        return results_of(self.read(key, ITEM_SCHEMA.names))


class _ByEvaluation(Mapping[EvalKey, Value]):
    """Values by evaluation, each read on request; the ledger itself may be closed."""

    def __init__(self, keys: Iterable[EvalKey], read: Callable[[EvalKey], Value]) -> None:
        self.known, self.read = dict.fromkeys(keys), read

    def __getitem__(self, key: EvalKey) -> Value:
        """Read a value. Raises KeyError, or IntegrityError for an altered file."""
        if key not in self.known:
            raise KeyError(key)
        return self.read(key)

    def __contains__(self, key: object) -> bool:
        return key in self.known  # reads nothing

    def __iter__(self) -> Iterator[EvalKey]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)
