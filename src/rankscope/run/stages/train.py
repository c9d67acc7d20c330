"""Train a group of trials and store weights, records and failures in one transaction."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rankscope.device import peak_memory_bytes, reset_peak_memory
from rankscope.models.base import Base
from rankscope.progress import SpeedMeter
from rankscope.records import RungRecord, TrainRecord, TrialSpec
from rankscope.run.callbacks import StepCallbacks
from rankscope.run.groups import Group, group_id, group_label, halves_of
from rankscope.run.stages import Stage
from rankscope.run.trial_weights import write_weights
from rankscope.store import CHECKPOINTS, Artifact, TrialFailure, weights_path
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.trial_state import TrialState


class TrainStage(Stage[Group, "tuple[Group, GroupResult]"]):
    """Training of the trials that are still planned. Of a nested run the trial of the largest rank
    trains, and the weights of all are cut from it."""

    name = "train"

    def missing(self, group: Group) -> list[Group]:
        """The untrained trials together, unless this round wants them no further than they are."""
        untrained, pause_at = self.untrained(group), self.pause_at(group)
        if pause_at is not None and self.context.ledger.has_reached(untrained, pause_at):
            return []
        return [untrained] if untrained else []

    def pause_at(self, group: Group) -> int | None:
        """The step of this round's rung, the same for a whole group; None: train to the end."""
        rung = self.context.round.rung
        return None if rung is None else self.context.study.rung_steps(group[0])[rung]

    def untrained(self, group: Group) -> Group:
        """The planned trials of a group. These are only some if the study file gained trials,
        failed trials are tried again, or changed limits cut the groups anew."""
        statuses = self.context.ledger.statuses()
        return tuple(trial for trial in group if statuses[trial.trial_id] == "planned")

    def checkpoint(self, group: Group) -> GroupCheckpoint:
        return GroupCheckpoint(self.context.ledger.out / CHECKPOINTS / group_id(group))

    def split(self, group: Group) -> tuple[Group, Group]:
        """Split a group for good, and its checkpoint with it."""
        halves = halves_of(group)
        for half in halves:  # before the ledger knows of them: the process may be killed
            trained = [t.trial_id for t in self.context.study.trained(half)]
            self.checkpoint(group).extract(trained, self.checkpoint(half))
        self.context.group_ledger.split(group)
        self.checkpoint(group).remove()
        return halves

    def run(self, model: Base, work: Sequence[Group]) -> Iterator[tuple[Group, GroupResult]]:
        """Train each group to its end on the bare base, from its checkpoint if there is one."""
        context, study = self.context, self.context.study
        for group in work:
            train = study.config.train
            limit = context.group_ledger.batch_tokens(group)
            train = train.model_copy(update={"batch_tokens": limit})
            rows, trials = study.data.rows[group[0].task], study.trained(group)
            num_steps = max(map(study.num_steps, trials))
            pause_at = self.pause_at(group)
            context.begin_stage(f"{self.name} {group_label(group)}", pause_at or num_steps)
            meter = SpeedMeter(context.reporter, len(trials), study=context.study_clock)
            replay = {name: encoded.rows for name, encoded in study.data.replay_rows.items()}
            fewer = {n: own.rows for n, own in study.data.fewer_rows[group[0].task].items()}
            on_all_shards: dict[str, Any] = {
                "replay": replay,
                "fewer_rows": fewer,
                "pause_at": pause_at,
            }
            checkpoint, shards = self.checkpoint(group), model.shards
            if pause_at is not None and (done := checkpoint.step()) > pause_at:
                context.reporter.note(
                    f"{group[0].task} {group_label(group)}: found a checkpoint of step {done}, "
                    f"past the rung at step {pause_at}: training begins anew"
                )
                checkpoint.remove()
            between = StepCallbacks(context, meter, context.ledger.curve_points(trials))
            callbacks = (between.store_snapshots, between.score, between.stop_early)
            reset_peak_memory(context.base.device)
            shards.announce("train", trials, rows.rows, train, checkpoint.folder, on_all_shards)
            with shards.in_step():
                trained = train_group(
                    model,
                    trials,
                    rows.rows,
                    train,
                    **on_all_shards,
                    checkpoint=checkpoint.of_shards(shards, is_sharded=group[0].is_full),
                    progress=meter,
                    callbacks=[shards.alone(callback) for callback in callbacks],
                    should_stop=shards.agreed(context.should_stop),
                )
            yield group, trained

    def commit(self, result: tuple[Group, GroupResult]) -> None:
        """Store weights of every trial that ended well, all records and failures.

        At a rung, the checkpoint of the trials that go on is kept in place of weights.
        """
        context, (group, trained) = self.context, result
        pause_at = self.pause_at(group)
        peak = peak_memory_bytes(context.base.device)
        total_tokens = max(1, sum(state.num_tokens for state in trained.states))
        artifacts: list[Artifact] = []
        records: list[TrainRecord | RungRecord] = []
        failures = []
        for state in trained.states:
            trials = [trial for trial in group if trial.nest == state.spec.nest]
            if state.failure is not None:
                status, why = state.failure_status, state.failure
                failures += [TrialFailure(trial.trial_id, status, why) for trial in trials]
                continue
            seconds = trained.seconds * state.num_tokens / total_tokens / len(trials)
            if trained.is_paused and pause_at is not None:
                train, trial_id = self.record(state, group, seconds, peak, ""), state.spec.trial_id
                records.append(RungRecord(trial_id=trial_id, step=pause_at, train=train))
                continue
            for trial in trials:
                with context.ledger.stage() as folder:
                    sha256 = write_weights(state, trial, trained.tuned, context.base.record, folder)
                    artifacts += context.ledger.publish(folder, weights_path(trial))
                record = self.record(state, group, seconds, peak, sha256)
                records.append(_record_of(trial, record, state.spec))
        going_on = {record.trial_id for record in records} if trained.is_paused else set()
        before = self.keep_checkpoint(group, going_on)
        context.ledger.commit(records, artifacts, failures=failures)
        before.remove()

    def keep_checkpoint(self, group: Group, trial_ids: Collection[str]) -> GroupCheckpoint:
        """Copy the state of some trials of a group to where they look for it without the others;
        what can be removed once the ledger knows that the others are out."""
        rest = tuple(trial for trial in group if trial.trial_id in trial_ids)
        if len(rest) == len(group):
            return self.checkpoint(())
        if rest:
            self.checkpoint(group).extract(trial_ids, self.checkpoint(rest))
        return self.checkpoint(group)

    def record(
        self, state: TrialState, group: Group, seconds: float, peak: int, sha256: str
    ) -> TrainRecord:
        rows = self.context.study.data.rows_of(state.spec)
        return TrainRecord(
            trial_id=state.spec.trial_id,
            group_id=group_id(group),
            group_size=len(group),
            trainable_parameters=sum(p.numel() for p in state.parameters),
            steps=state.steps_done,
            num_tokens=state.num_tokens,
            num_label_tokens=state.num_label_tokens,
            rows=len(rows.rows),
            rows_dropped=rows.dropped,
            rows_truncated=rows.truncated,
            seconds=seconds,
            peak_memory_bytes=peak,
            losses=tuple(state.losses),
            weights_sha256=sha256,
            penalties=tuple(state.penalties),
            rewards=tuple(state.rewards),
            num_replay_tokens=state.num_replay_tokens,
            loss_scale_halvings=state.loss_scale_halvings,
            best_step=state.early_stop.best_step or None if state.early_stop else None,
        )


def _record_of(trial: TrialSpec, record: TrainRecord, trained: TrialSpec) -> TrainRecord:
    """The record of ``trained``, as that of a slice of it."""
    if trial == trained:
        return record
    parameters = record.trainable_parameters * (trial.rank or 0) // (trained.rank or 1)
    return record.model_copy(
        update={"trial_id": trial.trial_id, "trainable_parameters": parameters}
    )
