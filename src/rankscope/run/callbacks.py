"""What happens between two optimizer steps: scores, early stopping and weight snapshots.

A curve point is a trial's score on the first items of a validation split; an adaptive study keeps
the items of those at its rungs. Scoring draws no random number and leaves gradients, masks and
modes as they were, so a trial trains the same with and without it.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isnan

import torch

from rankscope.device import release_freed_memory
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.base import Base
from rankscope.models.sharding import local
from rankscope.progress import SpeedMeter
from rankscope.records import (
    CurvePoint,
    EvalRecord,
    ItemResult,
    TrialSpec,
    gold_logprobs_per_token,
    items_table,
)
from rankscope.run.context import RunContext
from rankscope.run.trial_weights import write_weights
from rankscope.store import Artifact, PointKey, snapshot_path
from rankscope.train.trial_state import TrialState


@dataclass(slots=True)
class StepCallbacks:
    """What a group's training calls after each step, with the models of its trials."""

    context: RunContext
    meter: SpeedMeter
    points: dict[PointKey, CurvePoint]  # The points of learning curves known so far
    _steps: dict[str, frozenset[int]] = field(default_factory=dict)

    def store_snapshots(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Store the weights that ``train.checkpoint_every`` asks for after ``step`` and that are
        not stored yet, in one transaction."""
        study, ledger = self.context.study, self.context.ledger
        artifacts: list[Artifact] = []
        for state in states:
            if step not in study.snapshot_steps(state.spec) or not _can_score(state, step):
                continue
            for trial in study.trials:
                path = snapshot_path(trial, step)
                if trial.nest == state.spec.nest and not ledger.artifacts(path):
                    with ledger.stage() as folder:
                        write_weights(state, trial, model, self.context.base.record, folder)
                        artifacts += ledger.publish(folder, path)
        if artifacts:
            ledger.commit(artifacts=artifacts)

    def score(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Score the trials that ``train.evaluate_every`` or a rung names after ``step``, and store
        the points of each task at once; a stored point is not computed again. Return early,
        between tasks, if a stop was requested."""
        study = self.context.study
        due = [s for s in states if step in self.steps(s.spec) and _can_score(s, step)]
        models_of: dict[str, dict[str | None, str]] = {}
        for state in due:
            for task in study.curve_tasks(state.spec.task):
                if (state.spec.trial_id, task, step) not in self.points:
                    models_of.setdefault(task, {})[state.adapter_name] = state.spec.trial_id
        if not models_of:
            return
        at_rung = {s.spec.trial_id for s in due if step in study.rung_steps(s.spec)}
        if at_rung:  # training pauses here, so scoring can have the memory of its passes
            release_freed_memory()
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
                new = [
                    curve_point(record, step, items if record.trial_id in at_rung else ())
                    for record, items in evaluations.values()
                ]
                self.context.ledger.commit(new)
                self.points.update(((p.trial_id, p.task, p.step), p) for p in new)
        if scored is not model:
            del scored
            gc.collect()  # layers with compiled kernels refer to themselves

    def steps(self, trial: TrialSpec) -> frozenset[int]:
        """Steps after which a trial is scored: they are asked for after every step."""
        if trial.trial_id not in self._steps:
            self._steps[trial.trial_id] = frozenset(self.context.study.scored_steps(trial))
        return self._steps[trial.trial_id]

    def stop_early(self, step: int, model: Base, states: Sequence[TrialState]) -> None:
        """Pass trials' in-domain scores to their early stop.

        If a stop request kept :meth:`score` from a point, the trial observes it when the run
        continues. A rung between the steps of ``train.evaluate_every`` does not count.
        """
        for state in states:
            point = self.points.get((state.spec.trial_id, state.spec.task, step))
            if state.early_stop is None or point is None or not _can_score(state, step):
                continue
            if step in self.context.study.curve_steps(state.spec):
                state.observe_score(step, point.score)


def _can_score(state: TrialState, step: int) -> bool:
    """Whether a trial made the last of ``step`` optimizer steps and has finite weights."""
    return state.is_active(step - 1) and all(
        bool(torch.isfinite(local(parameter)).all()) for parameter in state.parameters
    )


@contextmanager
def _evaluation_mode(model: Base, states: Sequence[TrialState]) -> Iterator[None]:
    """Put all layers into evaluation mode, and back afterwards."""
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
    """A model in the dtype of the study, in which it is also scored after training.

    Full fine-tuning trains in float32; in another dtype the result is a copy, unless several shards
    hold it: then its products already have the study's dtype.
    """
    if model.model.dtype == base.model.dtype or model.shards.size > 1:
        return model
    copied, trained = base.copied(), dict(model.model.named_parameters())
    with torch.no_grad():
        for name, parameter in copied.model.named_parameters():
            parameter.copy_(trained[name])
    return copied


def curve_point(record: EvalRecord, step: int, items: Sequence[ItemResult] = ()) -> CurvePoint:
    """The part of an evaluation that a curve keeps; with ``items``, their scores too."""
    fields = {"trial_id", "task", "metric", "score", "standard_error", "n", "seconds", "num_tokens"}
    gold = gold_logprobs_per_token(items_table(items)).tolist()
    return CurvePoint(
        step=step,
        item_scores=tuple(item.score for item in items),
        gold_logprobs=tuple(None if isnan(logprob) else logprob for logprob in gold),
        **record.model_dump(include=fields),
    )
