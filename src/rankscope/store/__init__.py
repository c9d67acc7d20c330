"""The only memory of a study: SQLite state, hashed artifacts and a lock against two runners."""

from rankscope.store.artifacts import Artifact, Problem
from rankscope.store.items import adapter_path, items_path, model_path, snapshot_path, weights_path
from rankscope.store.ledger import Ledger, PointKey, StoredGroups, TrialFailure

__all__ = [
    "Artifact",
    "Ledger",
    "PointKey",
    "Problem",
    "StoredGroups",
    "TrialFailure",
    "adapter_path",
    "items_path",
    "model_path",
    "snapshot_path",
    "weights_path",
]
