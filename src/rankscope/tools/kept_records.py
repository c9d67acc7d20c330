"""The records of a study as a small folder: scores by item and settings, without rows, prompts,
answers or weights.

``rankscope report --records`` writes it, ``rankscope atlas`` reads it. ``study.json`` has the
settings, the tasks and the state of every trial, ``records.parquet`` each stored record as JSON,
and ``items.parquet`` the scores by item. Vectors of spectra are left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rankscope.analyses import all_analyses
from rankscope.analyses.tables import TableRow
from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import reading, reporting_shortages
from rankscope.filesystem import replace_bytes
from rankscope.records import (
    CurvePoint,
    EvalKey,
    EvalRecord,
    ItemScores,
    ModelRecord,
    Provenance,
    Record,
    StopRecord,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    TrialSpec,
)
from rankscope.store.database import kind_of
from rankscope.tools.frames import trial_row

R = TypeVar("R", bound=Record)
ABOUT = "study.json"
ITEM_COLUMNS = (
    *("model", "task", "split", "item", "subject", "score"),
    *("gold_logprob", "gold_tokens", "among"),
)


def keep_records(study: StudyRecords, out: Path) -> None:
    """Write the records of ``study`` to the folder ``out``. Raises DiskFull, and IntegrityError for
    an altered table of items."""
    about = {
        "name": study.name,
        "config": study_values(study.config),
        "notes": study.notes,
        "model": study.model.model_dump(mode="json"),
        "provenance": study.provenance.model_dump(mode="json"),
        "seconds": study.total_seconds,
        "tasks": [task.model_dump(mode="json") for task in study.tasks],
        "trials": [trial_row(trial) for trial in study.trials],
    }
    shown = _without_folders(json.loads(json.dumps(about, default=str)))
    items = pd.DataFrame(
        [row for key in study.results for row in _item_rows(study, key)], columns=ITEM_COLUMNS
    )
    bodies = pd.DataFrame(_bodies(study), columns=["kind", "body"])
    with reporting_shortages(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, frame in (("items", items), ("records", bodies)):
            content = frame.to_parquet(compression="zstd", index=False)
            replace_bytes(out / f"{name}.parquet", content)
        replace_bytes(out / ABOUT, (json.dumps(shown, indent=1) + "\n").encode())


def _item_rows(study: StudyRecords, key: EvalKey) -> Iterator[TableRow]:
    """One row per item; ``among`` is log p of the right answer if one of those offered must be
    given, nats."""
    model_id, task, split = key
    logprobs = study.items[key].gold_logprobs.tolist()  # Per token
    for item, logprob in zip(study.results[key], logprobs, strict=True):
        offers = item.letter_logprobs or item.option_logprobs
        yield {
            "model": model_id,
            "task": task,
            "split": split,
            "item": item.item_id,
            "subject": item.subject,
            "score": np.float32(item.score),
            "gold_logprob": np.float32(item.gold_logprob),
            "gold_tokens": item.gold_tokens,
            "among": float(np.float32(logprob * (item.gold_tokens or 0))) if offers else None,
        }


def _bodies(study: StudyRecords) -> list[TableRow]:
    """All records by kind, as JSON; vectors of a spectrum are left out, its numbers rounded."""
    found: list[tuple[str, Record | None]] = []
    for trial in study.trials:
        found += [("trial", trial.spec), ("train", trial.train), ("stop", trial.stop)]
        found += [("curve", point) for point in trial.curve]
        found += [(kind_of(type(record)), record) for record in trial.analyses]
    found += [("eval", record) for record in study.evals.values()]
    return [
        {"kind": kind, "body": json.dumps(_rounded(body) if kind == "spectra" else body)}
        for kind, record in found
        if record is not None
        for body in [_without_folders(record.model_dump(mode="json"))]
    ]


def _rounded(value: Any) -> Any:
    """JSON with five significant digits; lists of numbers that are no pairs are emptied."""
    match value:
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list():
            is_vector = len(value) != 2 and not any(isinstance(v, dict) for v in value)
            return [] if is_vector else [_rounded(inner) for inner in value]
        case float():
            return float(f"{value:.5g}")
    return value


def _without_folders(value: Any) -> Any:
    """JSON with the names alone of paths: a folder of this machine is nobody else's business."""
    match value:
        case dict():
            return {name: _without_folders(inner) for name, inner in value.items()}
        case list():
            return [_without_folders(inner) for inner in value]
        case str():
            return re.sub(r"(?<![\w./])/(?:[^/\s]+/)+", "", value)
    return value


def kept_study(folder: Path) -> StudyRecords:
    """The study whose records are in ``folder``; it has no ``results``. Raises UserError."""
    expected, do = "records of a study", "write them again with 'rankscope report DIR --records'"
    with reading(folder, expected, do=do):
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text("utf-8"))
        scores = _item_scores(pd.read_parquet(folder / "items.parquet"))
        bodies = pd.read_parquet(folder / "records.parquet").groupby("kind")["body"].agg(list)

        def of(kind: str, record: type[R]) -> list[R]:
            return [record.model_validate_json(body) for body in bodies.get(kind, ())]

        evals = {(r.trial_id, r.task, r.split): r for r in of("eval", EvalRecord)}
        return StudyRecords(
            name=str(about["name"]),
            config=StudyConfig.model_validate_json(json.dumps(about["config"])),
            model=ModelRecord(**about["model"]),
            tasks=tuple(TaskRecord(**task) for task in about["tasks"]),
            trials=_kept_trials(about["trials"], of),
            evals=evals,
            items={key: scores[key] for key in evals},
            provenance=Provenance(**about["provenance"]),
            total_seconds=float(about["seconds"]),
            notes=tuple(map(str, about["notes"])),
        )


def _kept_trials(rows: list[dict[str, Any]], of: Any) -> tuple[TrialRecords, ...]:
    """rows: of ``study.json``. of: (kind, type) -> the records of that kind."""
    train = {record.trial_id: record for record in of("train", TrainRecord)}
    stop = {record.trial_id: record for record in of("stop", StopRecord)}
    curve: list[CurvePoint] = of("curve", CurvePoint)
    kinds = [(a.name, kind) for a in all_analyses() if (kind := a.record_type())]
    analyses = [record for name, kind in kinds for record in of(name, kind)]
    state: Mapping[str, Any] = {row["trial"]: row for row in rows}
    return tuple(
        TrialRecords(
            spec,
            state[spec.trial_id]["status"],
            state[spec.trial_id]["failure"],
            train.get(spec.trial_id),
            tuple(record for record in analyses if record.trial_id == spec.trial_id),
            tuple(point for point in curve if point.trial_id == spec.trial_id),
            stop.get(spec.trial_id),
        )
        for spec in of("trial", TrialSpec)
    )


def _item_scores(table: pd.DataFrame) -> dict[EvalKey, ItemScores]:
    among = table["among"] if "among" in table else pd.Series(np.nan, table.index)
    logprobs = among.astype(float).fillna(table["gold_logprob"]) / table["gold_tokens"]
    table = table.assign(logprob=logprobs.replace([np.inf, -np.inf], np.nan))
    table["subject"] = table["subject"].astype(object).where(table["subject"].notna(), None)
    groups = table.groupby(["model", "task", "split"], sort=False)
    return {
        key: ItemScores(
            item_ids=tuple(rows["item"]),
            scores=rows["score"].to_numpy(np.float64),
            gold_logprobs=rows["logprob"].to_numpy(np.float64),
            subjects=tuple(rows["subject"]),
        )
        for key, rows in groups
    }
