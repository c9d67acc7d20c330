"""Paths of artifacts, and per-item scores read on demand: a thousand trials open in seconds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.errors import IntegrityError
from rankscope.records import (
    BASE,
    GOLD_COLUMNS,
    ITEM_SCHEMA,
    EvalKey,
    ItemResult,
    ItemScores,
    TrialSpec,
    gold_logprobs_per_token,
    results_of,
)
from rankscope.store.artifacts import ARTIFACTS, Artifact, ArtifactStore

SAMPLED_ROWS = f"{ARTIFACTS}/{BASE}/self_replay"
Value = TypeVar("Value")
COLUMNS = ["item_id", "subject", "score", *GOLD_COLUMNS]


def adapter_path(trial_id: str) -> str:
    return f"artifacts/{trial_id}/adapter"


def weights_path(spec: TrialSpec, below: str = "") -> str:
    return f"artifacts/{spec.trial_id}/{below}{'model' if spec.is_full else 'adapter'}"


def snapshot_path(spec: TrialSpec, step: int) -> str:
    return weights_path(spec, f"steps/{step}/")


def sampled_rows_path(sha256: str) -> str:
    """Of rows that the base wrote; ``sha256`` says how they are sampled."""
    return f"{SAMPLED_ROWS}/{sha256[:16]}.jsonl"


def items_path(trial_id: str, task: str, split: str) -> str:
    folder = trial_id.replace("@", "/")  # a variant's items go below its trial's
    return f"artifacts/{folder}/items/{task}.{split}.parquet"


class ItemTables:
    """The per-item tables of a study; each file is compared with its hash before it is read."""

    def __init__(self, store: ArtifactStore, artifacts: Iterable[Artifact]) -> None:
        self._store = store
        self._artifacts = {artifact.path: artifact for artifact in artifacts}
        self._names: dict[tuple[str, str], tuple[Any, ...]] = {}
        """By task and split, the names of its items: as a table to compare, and as tuples."""

    def read(self, key: EvalKey, columns: Sequence[str]) -> pa.Table:
        """Columns of the table of one evaluation. Raises IntegrityError for an altered file."""
        place = items_path(*key)
        artifact = self._artifacts.get(place)
        path = self._store.checked_path(place, () if artifact is None else (artifact,))
        try:
            table = pq.ParquetFile(path).read(columns=list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise IntegrityError(path, f"a fault ({error})", "a table of item scores") from error
        # A KeyError further on would read as "this model has no scores".
        if missing := set(columns) - set(table.column_names):
            raise IntegrityError(
                path,
                f"no column {min(missing)!r}, as another version of Rankscope wrote this study",
                "all columns",
                "run it again with another --out",
            )
        return table

    def scores(self, key: EvalKey) -> ItemScores:
        """Models scored on the same items share one tuple of names, which saves most memory."""
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


class ByEvaluation(Mapping[EvalKey, Value]):
    """Values by evaluation, each read when it is asked for; the ledger itself may be closed."""

    def __init__(self, keys: Iterable[EvalKey], read: Callable[[EvalKey], Value]) -> None:
        self.known, self.read = dict.fromkeys(keys), read

    def __getitem__(self, key: EvalKey) -> Value:
        """Raises KeyError, or IntegrityError for an altered file."""
        if key not in self.known:
            raise KeyError(key)
        return self.read(key)

    def __contains__(self, key: object) -> bool:
        return key in self.known  # reads nothing

    def __iter__(self) -> Iterator[EvalKey]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)
