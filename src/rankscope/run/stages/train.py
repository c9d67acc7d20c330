"""The training stage: it stores weights, records and failures of a group in one transaction.

Between two optimizer steps come scores, early stopping and weight snapshots. A curve point is a
trial's score on the first items of a validation split. Scoring draws no random number and leaves
gradients, masks and modes unchanged, so a trial trains the same with and without it.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from rankscope.device import peak_memory_bytes, reset_peak_memory
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.base import Base
from rankscope.models.sharding import local
from rankscope.progress import SpeedMeter
from rankscope.records import CurvePoint, EvalRecord, TrainRecord
from rankscope.run.context import RunContext
from rankscope.run.groups import Group, group_id, group_label, halves_of
from rankscope.run.stages import Stage
from rankscope.run.trial_weights import write_weights
from rankscope.store import (
    CHECKPOINTS,
    Artifact,
    PointKey,
    TrialFailure,
    snapshot_path,
    weights_path,
)
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.trial_state import TrialState


class TrainStage(Stage[Group, "tuple[Group, GroupResult]"]):
    """Trains the trials that are still planned."""

    name = "train"

    def missing(self, group: Group) -> list[Group]:
        """Return the untrained trials, as one piece of work."""
        untrained = self.untrained(group)
        return [untrained] if untrained else []

    def untrained(self, group: Group) -> Group:
        """Return the planned trials of a group.

        These are only some if the study file gained trials, failed trials are tried again, or
        changed limits cut the groups anew.
        """
        statuses = self.context.ledger.statuses()
        return tuple(trial for trial in group if statuses[trial.trial_id] == "planned")

    def checkpoint(self, group: Group) -> GroupCheckpoint:
        return GroupCheckpoint(self.context.ledger.out / CHECKPOINTS / group_id(group))

    def split(self, group: Group) -> tuple[Group, Group]:
        """Split a group for good, and its checkpoint with it."""
        halves = halves_of(group)
        for half in halves:  # before the ledger knows the halves: the process may be killed
            trained = [trial.trial_id for trial in half]
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
            rows, trials = study.data.rows[group[0].task], group
            num_steps = max(map(study.num_steps, trials))
            context.begin_stage(f"{self.name} {group_label(group)}", num_steps)
            meter = SpeedMeter(context.reporter, len(trials), study=context.study_clock)
            fewer = study.data.fewer_rows[group[0].task]
            on_all_shards: dict[str, Any] = {
                "replay": {name: own.rows for name, own in study.data.replay_rows.items()},
                "fewer_rows": {num: own.rows for num, own in fewer.items()},
            }
            checkpoint, shards = self.checkpoint(group), model.shards
            steps = {trial.trial_id: frozenset(study.curve_steps(trial)) for trial in trials}
            points = context.ledger.curve_points(trials)
            between = _StepCallbacks(context, meter, points, steps)
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
        """Store weights of every trial that ended well, and all records and failures."""
        context, (group, trained) = self.context, result
        peak = peak_memory_bytes(context.base.device)
        total_tokens = max(1, sum(state.num_tokens for state in trained.states))
        artifacts: list[Artifact] = []
        records: list[TrainRecord] = []
        failures = []
        for state in trained.states:
            trial = state.spec
            if state.failure is not None:
                failures.append(TrialFailure(trial.trial_id, state.failure_status, state.failure))
                continue
            seconds = trained.seconds * state.num_tokens / total_tokens
            with context.ledger.stage() as folder:
                sha256 = write_weights(state, trained.tuned, context.base.record, folder)
                artifacts += context.ledger.publish(folder, weights_path(trial))
            records.append(self.record(state, group, seconds, peak, sha256))
        context.ledger.commit(records, artifacts, failures=failures)
        self.checkpoint(group).remove()

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


# --- between two optimizer steps ----------------------------------------------------------------


@dataclass(slots=True)
class _StepCallbacks:
    """Callbacks of a group's training after each step, with the models of its trials."""

    context: RunContext
    meter: SpeedMeter
    points: dict[PointKey, CurvePoint]  # The points of learning curves known so far
    steps: dict[str, frozenset[int]]  # By trial, steps after which it is scored

    def store_snapshots(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Store the weights that ``train.checkpoint_every`` asks for, in one transaction.

        Weights that are stored already are left out.
        """
        study, ledger = self.context.study, self.context.ledger
        artifacts: list[Artifact] = []
        for state in states:
            if step not in study.snapshot_steps(state.spec) or not _can_score(state, step):
                continue
            path = snapshot_path(state.spec, step)
            if not ledger.artifacts(path):
                with ledger.stage() as folder:
                    write_weights(state, model, self.context.base.record, folder)
                    artifacts += ledger.publish(folder, path)
        if artifacts:
            ledger.commit(artifacts=artifacts)

    def score(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Score the trials that ``train.evaluate_every`` names after ``step``.

        The points of each task are stored at once, and a stored point is not computed again. A
        requested stop ends this early, between tasks.
        """
        study = self.context.study
        due = [s for s in states if step in self.steps[s.spec.trial_id] and _can_score(s, step)]
        models_of: dict[str, dict[str | None, str]] = {}
        for state in due:
            for task in study.curve_tasks(state.spec.task):
                if (state.spec.trial_id, task, step) not in self.points:
                    models_of.setdefault(task, {})[state.adapter_name] = state.spec.trial_id
        if not models_of:
            return
        with self.meter.paused(), _evaluation_mode(model, states):
            scored = _in_dtype_of(self.context.base, model)
            for task, models in models_of.items():
                if self.context.should_stop():
                    break
                self.meter.reporter.advance(step, f"scoring {task}")
                whole, limit = study.data.tasks[task], study.config.train.evaluate_items
                first = replace(whole, validation=whole.validation[:limit])
                evaluations, _ = evaluate_task(
                    scored, study.data.encoder, first, "validation", models, study.config.evaluate
                )
                new = [_curve_point(record, step) for record, _ in evaluations.values()]
                self.context.ledger.commit(new)
                self.points.update(((p.trial_id, p.task, p.step), p) for p in new)
        if scored is not model:
            del scored
            gc.collect()  # layers with kernels of an extension refer to themselves

    def stop_early(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Pass trials' in-domain scores to their early stop.

        If a requested stop kept :meth:`score` from a point, the trial observes it when the run
        continues.
        """
        for state in states:
            point = self.points.get((state.spec.trial_id, state.spec.task, step))
            if state.early_stop is None or point is None or not _can_score(state, step):
                continue
            state.observe_score(step, point.score)


def _can_score(state: TrialState, step: int) -> bool:
    """Whether a trial trained until ``step`` optimizer steps were done, and has finite weights."""
    return state.is_active(step - 1) and all(
        bool(torch.isfinite(local(parameter)).all()) for parameter in state.parameters
    )


@contextmanager
def _evaluation_mode(model: Base, states: Sequence[TrialState]) -> Iterator[None]:
    """Put all layers into evaluation mode inside, and back at the end."""
    training = [module for module in model.model.modules() if module.training]
    model.model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for state in states:
            if state.adapter is not None:
                state.adapter.drop_cached_weights()  # made in inference mode: without gradient


def _in_dtype_of(base: Base, model: Base) -> Base:
    """Return a model in the dtype of the study, in which it is also scored after training.

    Full fine-tuning trains in float32, so another dtype needs a copy. If several shards hold the
    model, its products already have the study's dtype.
    """
    if model.model.dtype == base.model.dtype or model.shards.size > 1:
        return model
    copied, trained = base.copied(), dict(model.model.named_parameters())
    with torch.no_grad():
        for name, parameter in copied.model.named_parameters():
            parameter.copy_(trained[name])
    return copied


def _curve_point(record: EvalRecord, step: int) -> CurvePoint:
    """Return the part of an evaluation that a curve keeps."""
    fields = {"trial_id", "task", "metric", "score", "standard_error", "n", "seconds", "num_tokens"}
    return CurvePoint(step=step, **record.model_dump(include=fields))
