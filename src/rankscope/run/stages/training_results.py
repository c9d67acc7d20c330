"""What training a group gave, stored: weights, records and failures in one transaction."""

from typing import Literal

from rankscope.device import peak_memory_bytes
from rankscope.models.base import Base
from rankscope.records import TrainRecord
from rankscope.run.groups import Group, group_id
from rankscope.run.prepare import PreparedStudy
from rankscope.run.trial_weights import write_weights
from rankscope.store import Artifact, Ledger, TrialFailure, weights_path
from rankscope.train.loop import NOTHING_TRAINED, GroupResult
from rankscope.train.trial_state import TrialState


def store_training(
    ledger: Ledger, inputs: PreparedStudy, base: Base, group: Group, result: GroupResult
) -> None:
    """Store weights of every trial that ended well, and all records."""
    peak = peak_memory_bytes(base.device)
    total_tokens = max(1, sum(trial_state.num_tokens for trial_state in result.trial_states))
    artifacts: list[Artifact] = []
    records = []
    failures = []
    for trial_state in result.trial_states:
        if trial_state.failure is not None:
            nothing = trial_state.failure.startswith(NOTHING_TRAINED)
            status: Literal["failed", "diverged"] = "failed" if nothing else "diverged"
            failures.append(TrialFailure(trial_state.spec.trial_id, status, trial_state.failure))
            continue
        with ledger.stage() as folder:
            weights = write_weights(trial_state, result.base, base.record, folder)
            artifacts += ledger.publish(folder, weights_path(trial_state.spec))
        records.append(
            train_record(
                inputs,
                trial_state,
                group,
                seconds=result.seconds * trial_state.num_tokens / total_tokens,
                peak=peak,
                weights_sha256=weights,
            )
        )
    ledger.commit_training(records, failures, artifacts)


def train_record(
    inputs: PreparedStudy,
    trial_state: TrialState,
    group: Group,
    *,
    seconds: float,
    peak: int,
    weights_sha256: str,
) -> TrainRecord:
    """What training one trial gave."""
    rows = inputs.rows[trial_state.spec.task]
    return TrainRecord(
        trial_id=trial_state.spec.trial_id,
        group_id=group_id(group),
        group_size=len(group),
        trainable_parameters=sum(p.numel() for p in trial_state.parameters),
        steps=trial_state.steps_done,
        num_tokens=trial_state.num_tokens,
        num_label_tokens=trial_state.num_label_tokens,
        rows=len(rows.rows),
        rows_dropped=rows.dropped,
        rows_truncated=rows.truncated,
        seconds=seconds,
        peak_memory_bytes=peak,
        losses=tuple(trial_state.losses),
        weights_sha256=weights_sha256,
        penalties=tuple(trial_state.penalties),
        num_replay_tokens=trial_state.num_replay_tokens,
        best_step=trial_state.early_stop.best_step or None if trial_state.early_stop else None,
    )
