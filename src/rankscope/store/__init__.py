"""The only memory of a study: SQLite state, hashed artifacts, and a lock against two runners."""

from rankscope.store.artifacts import CHECKPOINTS, UNIT_ORDER, UNITS, Artifact
from rankscope.store.database import PointKey, StoredGroups, TrialFailure
from rankscope.store.history import task_changes
from rankscope.store.ledger import Ledger
from rankscope.store.loading import items_path, parity_path, rows_path, snapshot_path, weights_path
from rankscope.store.lock import running_process
from rankscope.store.row_hashes import LEDGER
from rankscope.store.transfer import transfer
from rankscope.store.verify import OUTPUT_FILES, find_problems

__all__ = [
    "CHECKPOINTS",
    "LEDGER",
    "OUTPUT_FILES",
    "UNITS",
    "UNIT_ORDER",
    "Artifact",
    "Ledger",
    "PointKey",
    "StoredGroups",
    "TrialFailure",
    "find_problems",
    "items_path",
    "parity_path",
    "rows_path",
    "running_process",
    "snapshot_path",
    "task_changes",
    "transfer",
    "weights_path",
]
