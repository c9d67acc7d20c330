"""The records of a study as a small folder: scores by item and settings, without rows, prompts,
answers, analyses or weights.

``claims_records.py`` writes it, judges read it. ``study.json`` has the settings, the tasks and the
state of every trial, ``records.parquet`` each stored record as JSON, and ``items.parquet`` the
scores by item.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import reading, reporting_shortages
from rankscope.filesystem import make_folder, replace_bytes
from rankscope.records import (
    CurvePoint,
    EvalKey,
    EvalRecord,
    ItemScores,
    ModelRecord,
    Provenance,
    Record,
    RoundRecord,
    ScoredModel,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    TrialSpec,
    Variant,
    trial_of,
)
from rankscope.tools.frames import trial_row

Kept = TypeVar("Kept", bound=Record)
ABOUT = "study.json"
WHOLE_PATH = r"(?:file://|~|\.\.|[A-Za-z]:)?[/\\]|\.\.?[/\\]"  # Begins a text that is one path
TEXTS = ("extract", "stop", "prompt", "system")  # Of a task, which may begin like a path
NUMBERS = ("score", "gold_logprob", "among")
KEPT_COLUMNS = ("model", "task", "split", "item", "subject", "gold_tokens", *NUMBERS)


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
        "tasks": [task.model_dump(mode="json", exclude={"system"}) for task in study.tasks],
        "trials": [trial_row(trial) for trial in study.trials],
    }
    found: list[tuple[str, Record | None]] = [
        ("eval", record.model_copy(update={"trial_id": str(model), "variant": None}))
        for (model, _, _), record in study.evals.items()
    ]
    for trial in study.trials:
        found += [
            ("trial", without_examples(trial.spec)),
            ("train", trial.train),
        ]
        found += [("curve", point) for point in trial.curve]
    found += [("round", of) for of in study.rounds]
    rows = [row for key in study.results for row in _item_rows(study, key)]
    frames = {
        "items": pd.DataFrame(rows, columns=KEPT_COLUMNS).astype(dict.fromkeys(NUMBERS, "float32")),
        "records": record_table(found),
    }
    shown = without_folders(json.loads(json.dumps(about, default=str)))
    with reporting_shortages(out):
        make_folder(out)
        for name, frame in frames.items():
            content = frame.to_parquet(compression="zstd", index=False)
            replace_bytes(out / f"{name}.parquet", content)
        replace_bytes(out / ABOUT, (json.dumps(shown, indent=1) + "\n").encode())


def _item_rows(study: StudyRecords, key: EvalKey) -> Iterator[tuple[object, ...]]:
    """One row per item, as ``KEPT_COLUMNS``; ``among`` is log p of the right answer among the
    answers offered, nats."""
    logprobs = study.items[key].gold_logprobs.tolist()  # Per token
    for item, logprob in zip(study.results[key], logprobs, strict=True):
        offers = item.letter_logprobs or item.option_logprobs
        among = logprob * (item.gold_tokens or 0) if offers else None
        yield (
            *(str(key[0]), *key[1:], item.item_id, item.subject, item.gold_tokens),
            *(item.score, item.gold_logprob, among),
        )


def record_table(records: Sequence[tuple[str, Record | None]]) -> pd.DataFrame:
    """(kind, record) as rows of ``kind`` and ``body``, its JSON; None is left out."""
    bodies = [
        (kind, json.dumps(without_folders(record.model_dump(mode="json"))))
        for kind, record in records
        if record is not None
    ]
    return pd.DataFrame(bodies, columns=["kind", "body"])


def without_examples(spec: TrialSpec) -> TrialSpec:
    """A trial without the solved examples of its prompt, which are rows."""
    if spec.prompt is None:
        return spec
    return spec.model_copy(update={"prompt": spec.prompt.model_copy(update={"examples": ()})})


def without_folders(value: Any) -> Any:
    """JSON with the names alone of paths: a folder of this machine is nobody else's business."""
    match value:
        case dict():
            return {n: v if n in TEXTS else without_folders(v) for n, v in value.items()}
        case list():
            return [without_folders(inner) for inner in value]
        case str() if re.match(WHOLE_PATH, value) and not re.search(r": |\n", value):
            return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        case str():
            return re.sub(r"(?<![\w./<>])/(?:[^/\s]+/)+", "", value)
    return value


def kept_study(folder: Path) -> StudyRecords:
    """The study whose records are in ``folder``, without ``results`` and analyses. Raises
    UserError."""
    expected, do = "records of a study", "write them again with claims_records.py"
    with reading(folder, expected, do=do):
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text("utf-8"))
        scores = _item_scores(pd.read_parquet(folder / "items.parquet"))
        bodies = pd.read_parquet(folder / "records.parquet").groupby("kind")["body"].agg(list)

        def of(kind: str, record: type[Kept]) -> list[Kept]:
            return [record.model_validate_json(body) for body in bodies.get(kind, ())]

        evals = {record.key: record for record in map(_with_variant, of("eval", EvalRecord))}
        train = {record.trial_id: record for record in of("train", TrainRecord)}
        points, rows = of("curve", CurvePoint), {row["trial"]: row for row in about["trials"]}
        trials = [
            TrialRecords(
                spec,
                status=rows[spec.trial_id]["status"],
                failure=rows[spec.trial_id]["failure"],
                train=train.get(spec.trial_id),
                curve=tuple(point for point in points if point.trial_id == spec.trial_id),
            )
            for spec in of("trial", TrialSpec)
        ]
        return StudyRecords(
            name=str(about["name"]),
            config=StudyConfig.model_validate_json(json.dumps(about["config"])),
            model=ModelRecord(**about["model"]),
            tasks=tuple(TaskRecord(**task) for task in about["tasks"]),
            trials=tuple(trials),
            evals=evals,
            items={key: scores[key] for key in evals},
            provenance=Provenance(**about["provenance"]),
            total_seconds=float(about["seconds"]),
            notes=tuple(map(str, about["notes"])),
            rounds=tuple(of("round", RoundRecord)),
        )


def _scored_model(name: str) -> ScoredModel:
    """The base, a trial, or a variant such as ``3f2a...@scale=0.5``, as records name it."""
    trial_id, mark, change = name.partition("@")
    kind, _, strength = change.partition("=")
    return Variant(trial_id, kind, float(strength)) if mark else name  # type: ignore[arg-type]


def _with_variant(record: EvalRecord) -> EvalRecord:
    model = _scored_model(record.trial_id)
    variant = model if isinstance(model, Variant) else None
    return record.model_copy(update={"trial_id": trial_of(model), "variant": variant})


def _item_scores(table: pd.DataFrame) -> dict[EvalKey, ItemScores]:
    among = table["among"] if "among" in table else pd.Series(np.nan, table.index)
    logprobs = among.astype(float).fillna(table["gold_logprob"]) / table["gold_tokens"]
    table = table.assign(logprob=logprobs.replace([np.inf, -np.inf], np.nan))
    table["subject"] = table["subject"].astype(object).where(table["subject"].notna(), None)
    return {
        (_scored_model(name), *place): ItemScores(
            tuple(rows["item"]),
            rows["score"].to_numpy(np.float64),
            rows["logprob"].to_numpy(np.float64),
            tuple(rows["subject"]),
        )
        for (name, *place), rows in table.groupby(["model", "task", "split"], sort=False)
    }
