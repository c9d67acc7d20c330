"""Per-item results and their Parquet table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("subject", pa.string()),
        ("score", pa.float64()),
        ("gold", pa.string()),
        ("prediction", pa.string()),
        ("gold_logprob", pa.float64()),
        ("gold_tokens", pa.int32()),
        ("option_logprobs", pa.list_(pa.float64())),
        ("option_tokens", pa.list_(pa.int32())),
        ("letter_logprobs", pa.list_(pa.float64())),
        ("generated", pa.string()),
        ("prompt", pa.string()),
    ]
)

PARITY_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("own", pa.string()),  # The own engine's answer
        ("vllm", pa.string()),
        ("equal", pa.bool_()),
        ("tokens", pa.int32()),  # Length of vLLM's answer, as below
        ("missed", pa.int32()),  # Tokens that the own engine would not write after those before
        ("own_logprob", pa.float64()),  # Log p per token, nats, by the own engine
        ("vllm_logprob", pa.float64()),
        ("difference", pa.float64()),  # Absolute
        ("difference_without_adapter", pa.float64()),  # Likewise, from the base's
    ]
)
"""Table of the first items that both engines answer under one model, before vLLM answers more."""


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item scored by one model; the row of the per-item Parquet table."""

    item_id: str
    subject: str | None
    score: float  # Primary metric of this item: 1 right, 0 wrong (or log p per token)
    gold: str
    prediction: str
    gold_logprob: float | None = None  # Summed over the gold answer's tokens, nats
    gold_tokens: int | None = None
    option_logprobs: tuple[float, ...] | None = None  # Summed log p of each option's text
    option_tokens: tuple[int, ...] | None = None
    letter_logprobs: tuple[float, ...] | None = None
    generated: str | None = None
    prompt: str | None = field(default=None, compare=False)
    """Prompt of the model, stored with the base's items only, because every model shares it."""


def items_table(items: Sequence[ItemResult]) -> pa.Table:
    columns = {name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA.names}
    return pa.table(columns, schema=ITEM_SCHEMA)


def write_items(path: Path, items: Sequence[ItemResult]) -> None:
    write_table(path, items_table(items))


def write_table(path: Path, table: pa.Table) -> None:
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    path.write_bytes(content.getvalue())  # at once: Arrow itself writes some fifty pieces


def results_of(table: pa.Table) -> list[ItemResult]:
    """Read the rows of a table with the columns of ``ITEM_SCHEMA``."""
    rows: list[dict[str, Any]] = table.cast(ITEM_SCHEMA).to_pylist()
    for row in rows:
        for name in ("option_logprobs", "option_tokens", "letter_logprobs"):
            if row[name] is not None:
                row[name] = tuple(row[name])
    return [ItemResult(**row) for row in rows]


def original_of(item_id: str) -> str:
    """Return the item that a copy repeats: ids of a row's copies end in ``.2``, ``.3`` and so
    on."""
    original, _, number = item_id.rpartition(".")
    return original if number.isdigit() else item_id


GOLD_COLUMNS = ("gold_logprob", "gold_tokens", "option_logprobs", "letter_logprobs")
"""Columns that ``gold_logprobs_per_token`` reads."""


def gold_logprobs_per_token(table: pa.Table) -> npt.NDArray[np.float64]:
    """Return log p of every item's right answer per token, nats, (items,); NaN where unknown.

    If answers are offered, it is log p of the right one given that one of them is the answer. A
    model that merely expects another form of answer gives all of them a lower log p, which cancels.
    An item whose ``gold_logprob`` is in neither list of offered answers keeps that value.
    """
    gold, tokens = (
        pc.fill_null(pc.cast(table[name], pa.float64()), float("nan")).to_numpy()
        for name in GOLD_COLUMNS[:2]
    )
    totals = np.zeros_like(gold)
    for name in GOLD_COLUMNS[2:]:
        offered = table[name].combine_chunks()
        counts = pc.fill_null(pc.list_value_length(offered), 0).to_numpy()
        rows = np.flatnonzero(counts)
        if rows.size:
            logprobs = offered.flatten().to_numpy(zero_copy_only=False)
            starts = (np.cumsum(counts) - counts)[rows]
            # One list, of the options' texts or of their letters, has the scored answer.
            is_scored = np.logical_or.reduceat(logprobs == np.repeat(gold, counts), starts)
            with np.errstate(invalid="ignore"):  # NaN of a broken model
                sums = np.logaddexp.reduceat(logprobs, starts)
            totals[rows] = np.where(is_scored, sums, totals[rows])
    known = np.isfinite(gold) & np.isfinite(totals) & (tokens > 0)
    per_token = np.full(len(gold), np.nan)
    per_token[known] = (gold[known] - totals[known]) / tokens[known]
    return per_token
