"""Load all records of a study from its ledger."""

import sqlite3
from collections.abc import Container, Iterator, Sequence
from functools import cache

from pydantic import FiniteFloat

from rankscope.analyses import all_analyses
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.formatting import count
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalRecord,
    ModelRecord,
    Provenance,
    StopRecord,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    trial_of,
)
from rankscope.store.artifacts import Artifact, ArtifactStore
from rankscope.store.database import has_study, required, stored, stored_records, stored_trials
from rankscope.store.history import mixed_versions_notes
from rankscope.store.items import ByEvaluation, ItemTables


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
        (trial_id, record.task, record.split): record
        for trial_id, record in stored_records(db, EvalRecord)
        if trial_of(trial_id) in shown and record.task in task_names
    }
    history = required(db, "provenance", list[Provenance])
    tables = ItemTables(store, artifacts)
    return StudyRecords(
        name=required(db, "name", str),
        config=required(db, "config", StudyConfig),
        model=required(db, "model", ModelRecord),
        tasks=tasks,
        trials=trials,
        evals=evals,
        items=ByEvaluation(evals, cache(tables.scores)),
        results=ByEvaluation(evals, tables.results),
        provenance=history[-1],
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
    stops = dict(stored_records(db, StopRecord))
    curves = _curves(db, tasks)
    for spec, status, failure in stored_trials(db):
        yield TrialRecords(
            spec,
            status,
            failure,
            train=train.get(spec.trial_id),
            analyses=tuple(r[spec.trial_id] for r in analyses if spec.trial_id in r),
            curve=tuple(curves.get(spec.trial_id, ())),
            stop=stops.get(spec.trial_id) if status == "stopped" else None,
        )


def _curves(db: sqlite3.Connection, tasks: Container[str]) -> dict[str, list[CurvePoint]]:
    """By trial, its learning curve on the study's tasks, in order of steps."""
    curves: dict[str, list[CurvePoint]] = {}
    for trial_id, point in stored_records(db, CurvePoint):
        if point.task in tasks:
            curves.setdefault(trial_id, []).append(point)
    return {trial_id: sorted(curve, key=lambda p: p.step) for trial_id, curve in curves.items()}


def _earlier_trials_notes(db: sqlite3.Connection) -> Iterator[str]:
    (earlier,) = db.execute("SELECT COUNT(*) FROM trials WHERE position IS NULL").fetchone()
    if earlier:
        yield (
            "Kept in the ledger and not shown here: "
            f"{count(earlier, 'trial')} of an earlier form of this study."
        )
