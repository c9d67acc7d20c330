"""Make a study again of the records that ``scripts/claims_records.py`` kept.

    python scripts/restore_study.py docs/findings/records/maths-grid studies/maths-grid
    rankscope report studies/maths-grid

The study can be reported, compared and read from Python. It has no weights, so it cannot be
exported or continued, no texts of rows or answers, and no singular values. Of the answers offered
it has log p of the right one, and of the others together.
"""

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rankscope.analyses import all_analyses
from rankscope.records import (
    FAILED,
    CurvePoint,
    EvalRecord,
    ItemResult,
    ModelRecord,
    Provenance,
    Record,
    StopRecord,
    TaskRecord,
    TrainRecord,
    TrialSpec,
    write_items,
)
from rankscope.store import Artifact, Ledger, TrialFailure, items_path

R = TypeVar("R", bound=Record)


def restore(records: Path, out: Path) -> None:
    """Write the study whose records are in ``records`` to the new folder ``out``."""
    about = json.loads((records / "study.json").read_text("utf-8"))
    rows = pd.read_parquet(records / "records.parquet")

    def of(kind: str, record: type[R]) -> list[R]:
        return [record.model_validate_json(body) for body in rows.loc[rows["kind"] == kind, "body"]]

    evals = of("eval", EvalRecord)
    items = pd.read_parquet(records / "items.parquet")
    status = {trial["trial"]: trial["status"] for trial in about["trials"]}
    why = {trial["trial"]: trial["failure"] or "" for trial in about["trials"]}
    with Ledger.open(out, write=True) as ledger:
        ledger.put_study(
            about["name"],
            about["config"],
            ModelRecord(**about["model"]),
            [TaskRecord(**task) for task in about["tasks"]],
            Provenance(**about["provenance"]),
        )
        ledger.put_notes(
            [*about["notes"], f"restored from the records of commit {about['commit']}"]
        )
        ledger.add_seconds(about["seconds"])
        ledger.put_trials(of("trial", TrialSpec))
        ledger.commit(
            [
                *of("train", TrainRecord),
                *of("stop", StopRecord),
                *of("curve", CurvePoint),
                *(r for a in all_analyses() if (kind := a.record_type()) for r in of(a.name, kind)),
            ],
            failures=[TrialFailure(i, s, why[i]) for i, s in status.items() if s in FAILED],
        )
        ledger.commit(evals, _published_items(ledger, items, evals))
        ledger.finish_trials([trial for trial, state in status.items() if state == "done"])
        for trial in [trial for trial, state in status.items() if state == "skipped"]:
            ledger.skip_trials([trial], why[trial])


def _published_items(
    ledger: Ledger, table: pd.DataFrame, evals: list[EvalRecord]
) -> list[Artifact]:
    """The tables of items of all evaluations, in the study's folder."""
    among = table.get("among", pd.Series(np.nan, table.index)).astype(float)
    with np.errstate(divide="ignore"):  # the others of an answer that is certain: log 0
        table = table.assign(others=table["gold_logprob"] - among + np.log(-np.expm1(among)))
    table = table.astype(object).where(table.notna(), None)
    groups = dict(list(table.groupby(["model", "task", "split"], sort=False)))
    artifacts: list[Artifact] = []
    with ledger.stage() as folder:
        for record in evals:
            key = (record.trial_id, record.task, record.split)
            items = [
                ItemResult(
                    item_id=row.item,
                    subject=row.subject,
                    score=row.score,
                    gold="",
                    prediction="",
                    gold_logprob=row.gold_logprob,
                    gold_tokens=row.gold_tokens,
                    **_offered(row, record.metric),
                )
                for row in groups[key].itertuples()
            ]
            write_items(folder / "items.parquet", items)
            artifacts += ledger.publish(folder / "items.parquet", items_path(*key))
    return artifacts


def _offered(row: Any, metric: str) -> dict[str, Any]:
    if row.others is None:
        return {}
    name = "letter_logprobs" if metric == "letter" else "option_logprobs"
    return {name: (row.gold_logprob, row.others)}


if __name__ == "__main__":
    restore(Path(sys.argv[1]), Path(sys.argv[2]))
