"""Scores on disk: per-item tables and ``scores.json``, by key, so that nothing is scored twice.

    DIR/scores.json                what was asked for last, in order, with every metric
    DIR/results/<key>.json         one model on one task: its record
    DIR/items/<task>.<split>/<key>.parquet   its items

A result is whole once its ``results/<key>.json`` is there: that is written last, and holds the hash
of its table.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from rankscope.errors import DiskFull, IntegrityError
from rankscope.filesystem import fsync, is_disk_full, replace_text
from rankscope.provenance import sha256_file
from rankscope.records import ITEM_SCHEMA, Estimate, EvalRecord, ItemResult, Record, read_items

SCORES = "scores.json"


class Score(Record):
    """One model on one task, and how it compares with the base on the same items."""

    key: str
    """Of weights, dtype, task and split."""
    model: str
    """``base``, or the adapter's short name."""
    record: EvalRecord
    change: Estimate | None
    """Adapter minus base, paired, with a 95 % interval; None for the base."""
    chance: float | None
    """Score of guessing, where it is known."""
    score_unit: Literal["accuracy", "log_probability"] | None
    """What a higher score is; None where the metric is in a unit of its own."""
    weights_sha256: str
    task_sha256: str
    dtype: str
    prompt_format: Literal["chat", "plain"]
    num_fewshot: int
    scorer: str
    source: str
    """Where the rows came from, for people."""
    other_base_forced: bool = False
    """The adapter says that it was made for other weights."""


class AllScores(Record):
    """What ``scores.json`` holds."""

    scores: tuple[Score, ...]


class StoredResult(Record):
    """What ``results/<key>.json`` holds."""

    key: str
    table: str
    """Place of the items, relative to the folder."""
    table_sha256: str
    record: EvalRecord


class ScoresFolder:
    """The results of one folder; without one they are kept in memory alone.

    Args:
        out: a folder, new or old; None keeps results in memory.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self._kept: dict[str, tuple[EvalRecord, list[ItemResult]]] = {}

    def holds(self, key: str) -> bool:
        """Whether a result was stored, whole.

        Raises:
            IntegrityError: it was, and is not any more what was written.
        """
        if key in self._kept:
            return True
        if self.out is None or not (place := self._place(key)).is_file():
            return False
        try:
            stored = StoredResult.model_validate_json(place.read_bytes())
        except ValidationError as error:
            raise IntegrityError(
                f"{place}: is not what was written; remove it, and the result is scored again"
            ) from error
        table = self.out / stored.table
        if stored.key != key or not table.is_file() or sha256_file(table) != stored.table_sha256:
            raise IntegrityError(
                f"{table}: missing, or not what was written; remove {place}, and the result is "
                "scored again"
            )
        self._kept[key] = (stored.record, read_items(table))
        return True

    def record(self, key: str) -> EvalRecord | None:
        """The record of a result, None where there is none."""
        return self._kept[key][0] if self.holds(key) else None

    def items(self, key: str) -> list[ItemResult] | None:
        """The items of a result, None where there is none."""
        return self._kept[key][1] if self.holds(key) else None

    def keep(self, key: str, model: str, record: EvalRecord, items: list[ItemResult]) -> None:
        """Store one result: its table, then its record.

        Raises:
            DiskFull: no space; nothing of this result is left.
        """
        self._kept[key] = (record, items)
        if self.out is None:
            return
        # A harness task's name is whatever its file says.
        name = re.sub(r"[^\w.+-]", "_", record.task)
        place = f"items/{name}.{record.split}/{key}.parquet"
        table = self.out / place
        table.parent.mkdir(parents=True, exist_ok=True)
        (self.out / "results").mkdir(exist_ok=True)
        aside = table.with_name(f".{table.name}.{os.getpid()}.part")
        try:
            write_table(aside, model, record, items)
            fsync(aside)
            os.replace(aside, table)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if not is_disk_full(error):
                raise
            raise DiskFull(f"{table}: the disk is full; make room, then ask again") from error
        digest = sha256_file(table)
        stored = StoredResult(key=key, table=place, table_sha256=digest, record=record)
        replace_text(self._place(key), stored.model_dump_json(indent=2) + "\n")

    def write(self, scores: Sequence[Score]) -> None:
        """Write ``scores.json``, in one step."""
        if self.out is not None and scores:
            text = AllScores(scores=tuple(scores)).model_dump_json(indent=2)
            replace_text(self.out / SCORES, text + "\n")

    def _place(self, key: str) -> Path:
        assert self.out is not None
        return self.out / "results" / f"{key}.json"


def write_table(path: Path, model: str, record: EvalRecord, items: Sequence[ItemResult]) -> None:
    """Per-item results of one model: ``ITEM_SCHEMA``'s columns, ``adapter`` and ``correct``.

    ``correct`` is null where an item has a likelihood, or a score in another unit, and nothing to
    be right about.
    """
    columns = {name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA.names}
    table = pa.table(columns, schema=ITEM_SCHEMA)
    table = table.append_column("adapter", pa.array([model] * len(items), pa.string()))
    has_answers = record.metric != "logprob_per_token" and all(0 <= i.score <= 1 for i in items)
    correct = [item.score == 1 if has_answers else None for item in items]
    pq.write_table(table.append_column("correct", pa.array(correct, pa.bool_())), path)
