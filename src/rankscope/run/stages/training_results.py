"""What training a pack gave, stored: weights, records and failures in one transaction."""

from typing import Literal

from rankscope.device import peak_memory_bytes
from rankscope.models.base import Base
from rankscope.records import TrainRecord
from rankscope.run.groups import Pack, pack_id
from rankscope.run.prepare import StudyInputs
from rankscope.run.trial_weights import write_weights
from rankscope.store import Artifact, Ledger, TrialFailure, weights_path
from rankscope.train.loop import NOTHING_TRAINED, PackResult
from rankscope.train.trial_state import Trainee


def store_training(
    ledger: Ledger, inputs: StudyInputs, base: Base, pack: Pack, result: PackResult
) -> None:
    """Store weights of every trial that ended well, and all records."""
    peak = peak_memory_bytes(base.device)
    total_tokens = max(1, sum(trainee.num_tokens for trainee in result.trainees))
    artifacts: list[Artifact] = []
    records = []
    failures = []
    for trainee in result.trainees:
        if trainee.failure is not None:
            nothing = trainee.failure.startswith(NOTHING_TRAINED)
            status: Literal["failed", "diverged"] = "failed" if nothing else "diverged"
            failures.append(TrialFailure(trainee.spec.trial_id, status, trainee.failure))
            continue
        with ledger.stage() as folder:
            weights = write_weights(trainee, result.base, base.record, folder)
            artifacts += ledger.publish(folder, weights_path(trainee.spec))
        records.append(
            train_record(
                inputs,
                trainee,
                pack,
                seconds=result.seconds * trainee.num_tokens / total_tokens,
                peak=peak,
                weights_sha256=weights,
            )
        )
    ledger.commit_training(records, failures, artifacts)


def train_record(
    inputs: StudyInputs,
    trainee: Trainee,
    pack: Pack,
    *,
    seconds: float,
    peak: int,
    weights_sha256: str,
) -> TrainRecord:
    """What training one trial gave."""
    rows = inputs.rows[trainee.spec.task]
    return TrainRecord(
        trial_id=trainee.spec.trial_id,
        pack_id=pack_id(pack),
        pack_size=len(pack),
        trainable_parameters=sum(p.numel() for p in trainee.parameters),
        steps=trainee.steps_done,
        num_tokens=trainee.num_tokens,
        num_label_tokens=trainee.num_label_tokens,
        rows=len(rows.rows),
        rows_dropped=rows.dropped,
        rows_truncated=rows.truncated,
        seconds=seconds,
        peak_memory_bytes=peak,
        losses=tuple(trainee.losses),
        weights_sha256=weights_sha256,
        penalties=tuple(trainee.penalties),
        num_replay_tokens=trainee.num_replay_tokens,
        best_step=trainee.early_stop.best_step or None if trainee.early_stop else None,
    )
