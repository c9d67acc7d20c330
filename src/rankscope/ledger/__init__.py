"""The only memory of a study: SQLite state, hashed artifacts and a lock against two runners."""

from rankscope.ledger.artifacts import Artifact, Problem
from rankscope.ledger.items import adapter_path, items_path, kept_path, model_path, weights_path
from rankscope.ledger.statuses import TrialFailure
from rankscope.ledger.store import Ledger

__all__ = [
    "Artifact",
    "Ledger",
    "Problem",
    "TrialFailure",
    "adapter_path",
    "items_path",
    "kept_path",
    "model_path",
    "weights_path",
]
