"""Make a study again of its kept records.

    python evidence/restore_study.py evidence/records/maths-grid studies/maths-grid
    rankscope report studies/maths-grid

The study can be reported, compared and read from Python. It has no weights, so it cannot be
exported or continued, no texts of rows or answers, and no singular values. Of the answers offered
it has log p of the right one, and of the others together.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kept_records import kept_study
from rankscope.analyses import all_analyses
from rankscope.config.loader import study_values
from rankscope.records import FAILED, EvalRecord, ItemResult, write_items
from rankscope.store import Artifact, Ledger, TrialFailure, items_path


def restore(folder: Path, out: Path) -> None:
    """Write the study whose records are in ``folder`` to the new folder ``out``."""
    study = kept_study(folder)
    trials, evals = study.trials, list(study.evals.values())
    items = pd.read_parquet(folder / "items.parquet")
    bodies = pd.read_parquet(folder / "records.parquet").groupby("kind")["body"].agg(list)
    analyses = [
        kind.model_validate_json(body)
        for analysis in all_analyses()
        if (kind := analysis.record_type())
        for body in bodies.get(analysis.name, ())
    ]
    with Ledger.open(out, write=True) as ledger:
        config = study_values(study.config)
        ledger.put_study(study.name, config, study.model, study.tasks, study.provenance)
        ledger.put_notes([*study.notes, f"restored from the records in {folder.name}"])
        ledger.add_seconds(study.total_seconds)
        ledger.put_trials([trial.spec for trial in trials])
        ledger.put_rounds(study.rounds)
        ledger.commit(
            [
                *(trial.train for trial in trials if trial.train),
                *(point for trial in trials for point in trial.curve),
                *analyses,
            ],
            failures=[
                TrialFailure(t.spec.trial_id, t.status, t.failure or "")  # type: ignore[arg-type]
                for t in trials
                if t.status in FAILED
            ],
        )
        ledger.commit(evals, _published_items(ledger, items, evals))
        ledger.finish_trials([t.spec.trial_id for t in trials if t.status == "done"])
        for trial in (trial for trial in trials if trial.status == "skipped"):
            ledger.skip_trials([trial.spec.trial_id], trial.failure or "")


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
            key = (str(record.key[0]), record.task, record.split)
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
            artifacts += ledger.publish(folder / "items.parquet", items_path(*record.key))
    return artifacts


def _offered(row: Any, metric: str) -> dict[str, Any]:
    if row.others is None:
        return {}
    name = "letter_logprobs" if metric == "letter" else "option_logprobs"
    return {name: (row.gold_logprob, row.others)}


if __name__ == "__main__":
    restore(Path(sys.argv[1]), Path(sys.argv[2]))
