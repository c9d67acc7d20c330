"""The only memory of a study: SQLite state, hashed artifacts and a lock against two runners."""

from rankscope.store.artifacts import CHECKPOINTS, UNITS, Artifact, Problem
from rankscope.store.items import adapter_path, items_path, model_path, snapshot_path, weights_path
from rankscope.store.ledger import Ledger, transfer
from rankscope.store.lock import running_process
from rankscope.store.results import PointKey, StoredGroups, TrialFailure

__all__ = [
    "CHECKPOINTS",
    "UNITS",
    "Artifact",
    "Ledger",
    "PointKey",
    "Problem",
    "StoredGroups",
    "TrialFailure",
    "adapter_path",
    "items_path",
    "model_path",
    "running_process",
    "snapshot_path",
    "transfer",
    "weights_path",
]
