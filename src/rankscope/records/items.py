"""Per-item results and their Parquet table."""

from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    """What the model was asked; stored with the base's items only, which every model shares."""

    @property
    def gold_logprob_per_token(self) -> float | None:
        if self.gold_logprob is None or not self.gold_tokens or not isfinite(self.gold_logprob):
            return None
        return self.gold_logprob / self.gold_tokens


def write_items(path: Path, items: list[ItemResult]) -> None:
    columns = {name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA.names}
    content = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=ITEM_SCHEMA), content)
    path.write_bytes(content.getvalue())  # at once: Arrow itself writes some fifty pieces


def read_items(path: Path) -> list[ItemResult]:
    """Read what ``write_items`` wrote; other columns are ignored."""
    return results_of(pq.read_table(path, columns=ITEM_SCHEMA.names))


def results_of(table: pa.Table) -> list[ItemResult]:
    """The rows of a table with the columns of ``ITEM_SCHEMA``."""
    rows: list[dict[str, Any]] = table.cast(ITEM_SCHEMA).to_pylist()
    for row in rows:
        for name in ("option_logprobs", "option_tokens", "letter_logprobs"):
            if row[name] is not None:
                row[name] = tuple(row[name])
    return [ItemResult(**row) for row in rows]
