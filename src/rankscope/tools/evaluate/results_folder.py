"""Scores on disk, found by key, so that nothing is scored twice.

    DIR/scores.json                          the scores of the last request, in order
    DIR/results/<key>.json                   one model on one task: its record
    DIR/items/<task>.<split>/<key>.parquet   its items

``results/<key>.json`` is written last, and holds the hash of the table: a result is complete once
it exists.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.errors import IntegrityError, reading
from rankscope.evaluate.evaluator import Evaluation
from rankscope.evaluate.scorers.scorer import ScoreUnit
from rankscope.filesystem import replace_bytes, replace_text
from rankscope.hashing import sha256_file
from rankscope.records import ITEM_SCHEMA, Estimate, EvalRecord, ItemResult, Record, read_items


class TaskInfo(Record):
    task_sha256: str  # Of everything that scores depend on, the model excepted
    chance: float | None  # Score of guessing, if it is known
    score_unit: ScoreUnit | None  # None for a metric in another unit
    num_fewshot: int
    scorer: str
    source: str  # Where the rows came from, for people


class Score(TaskInfo):
    """One model on one task, compared with the base on the same items."""

    key: str  # Of weights, dtype, task and split
    model: str  # ``base``, or the adapter's label
    record: EvalRecord
    change: Estimate | None  # Adapter minus base, paired, with a 95 % interval; None for the base
    weights_sha256: str
    dtype: str
    prompt_format: Literal["chat", "plain"]
    other_base_forced: bool = False  # The adapter records another base


class _AllScores(Record):
    scores: tuple[Score, ...]


class _StoredResult(Record):
    key: str
    table: str  # Path of the items, relative to the folder
    table_sha256: str
    record: EvalRecord


class ResultsFolder:
    """The results of a folder, or of this process alone if ``out`` is None."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self._loaded: dict[str, Evaluation] = {}

    def get(self, key: str) -> Evaluation | None:
        """A stored result, None if there is none. Raises IntegrityError: it differs from what was
        written."""
        if key in self._loaded or self.out is None or not (path := self._path(key)).is_file():
            return self._loaded.get(key)
        with reading(path, "what was written", IntegrityError, "remove it to score it again"):
            stored = _StoredResult.model_validate_json(path.read_bytes())
        table = self.out / stored.table
        if stored.key != key or not table.is_file() or sha256_file(table) != stored.table_sha256:
            raise IntegrityError(
                f"{table}: missing, or not what was written; remove {path} to score the result "
                "again"
            )
        self._loaded[key] = Evaluation(stored.record, read_items(table))
        return self._loaded[key]

    def put(self, key: str, model: str, evaluation: Evaluation) -> None:
        """Store one result: its table, then its record. Raises DiskFull: no space is left; nothing
        of this result is kept."""
        self._loaded[key] = evaluation
        if self.out is None:
            return
        record, items = evaluation
        # An lm_eval task's name is any text of its file.
        name = re.sub(r"[^\w.+-]", "_", record.task)
        relative = f"items/{name}.{record.split}/{key}.parquet"
        table = self.out / relative
        table.parent.mkdir(parents=True, exist_ok=True)
        (self.out / "results").mkdir(exist_ok=True)
        parquet = pa.BufferOutputStream()
        pq.write_table(_item_table(model, record, items), parquet)
        replace_bytes(table, parquet.getvalue().to_pybytes())
        stored = _StoredResult(
            key=key, table=relative, table_sha256=sha256_file(table), record=record
        )
        replace_text(self._path(key), stored.model_dump_json(indent=2) + "\n")

    def write_scores(self, scores: Sequence[Score]) -> None:
        if self.out is not None and scores:
            text = _AllScores(scores=tuple(scores)).model_dump_json(indent=2)
            replace_text(self.out / "scores.json", text + "\n")

    def _path(self, key: str) -> Path:
        assert self.out is not None
        return self.out / "results" / f"{key}.json"


def _item_table(model: str, record: EvalRecord, items: Sequence[ItemResult]) -> pa.Table:
    """``ITEM_SCHEMA``'s columns, ``adapter`` and ``correct``.

    ``correct`` is null for likelihoods and other scores that are neither right nor wrong.
    """
    columns = {name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA.names}
    table = pa.table(columns, schema=ITEM_SCHEMA)
    table = table.append_column("adapter", pa.array([model] * len(items), pa.string()))
    has_answers = record.metric != "logprob_per_token" and all(0 <= i.score <= 1 for i in items)
    correct = [item.score == 1 if has_answers else None for item in items]
    return table.append_column("correct", pa.array(correct, pa.bool_()))
