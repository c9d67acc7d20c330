"""Scores while training: the points of each trial's learning-forgetting curve.

A point is what :func:`~.evaluate_task` gives for the weights of that step,
on the first items of the validation split. The group that is looked at is left as it was: no random
number is drawn, no gradient, mask or mode changed, so a trial trains the same with and without.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rankscope.evaluate.evaluator import evaluate_with_failures
from rankscope.models.base import Base
from rankscope.models.multi_lora import MultiLora, unwrap
from rankscope.progress import SpeedMeter
from rankscope.records import CurvePoint, EvalRecord
from rankscope.run.prepare import PreparedStudy
from rankscope.store import Artifact, Ledger, snapshot_path
from rankscope.train.loop import StepCallback
from rankscope.train.trial_state import TrialState


@dataclass(slots=True)
class WeightSnapshot:
    """Stores the weights that trials have after the steps that the study asks for."""

    ledger: Ledger
    inputs: PreparedStudy
    write: Callable[[TrialState, Base, Path], str]
    """Writes a trial's weights into a folder."""

    def __call__(self, step: int, base: Base, trial_states: Sequence[TrialState]) -> None:
        """Store what is due and not stored; part of the study once all of it is written."""
        artifacts: list[Artifact] = []
        for trial_state in trial_states:
            if step not in self.inputs.snapshot_steps(trial_state.spec) or not takes_part(
                trial_state, step
            ):
                continue
            place = snapshot_path(trial_state.spec, step)
            if not self.ledger.artifacts(place):
                with self.ledger.stage() as folder:
                    self.write(trial_state, base, folder)
                    artifacts += self.ledger.publish(folder, place)
        if artifacts:
            self.ledger.commit_files(artifacts)


@dataclass(slots=True)
class LearningCurve:
    """Scores the trials of a group after the steps that the study asks for.

    What the loop calls after a step (:class:`~rankscope.train.loop.StepCallback`). Each task's points
    are stored as soon as they are known, and a stored point is not computed again.
    """

    ledger: Ledger
    inputs: PreparedStudy
    frozen: Base
    """The untuned base, whose dtype every model is scored in."""
    meter: SpeedMeter
    should_stop: Callable[[], bool]
    _steps: dict[str, frozenset[int]] = field(default_factory=dict)

    def __call__(self, step: int, base: Base, trial_states: Sequence[TrialState]) -> None:
        """Score whom it is time for; ends early, between two tasks, where the run is to stop."""
        due = {t.spec.trial_id: t for t in trial_states if step in self.steps(t)}
        due = {trial_id: t for trial_id, t in due.items() if takes_part(t, step)}
        wanted = [
            (trial_id, task, step)
            for trial_id, trial_state in due.items()
            for task in self.inputs.curve_tasks(trial_state.spec.task)
        ]
        missing = self.ledger.missing_points(wanted) if wanted else []
        if not missing:
            return
        with self.meter.paused(), untouched(base, trial_states):
            scored = in_dtype_of(self.frozen, base)
            for task in dict.fromkeys(task for _, task, _ in missing):
                if self.should_stop():
                    break
                self.meter.reporter.advance(step, f"scoring {task}")
                models = {
                    due[trial_id].adapter_name: trial_id
                    for trial_id, name, _ in missing
                    if name == task
                }
                self.score(scored, models, task, step)

    def steps(self, trial_state: TrialState) -> frozenset[int]:
        """After which steps a trial is scored."""
        spec = trial_state.spec
        if spec.trial_id not in self._steps:
            self._steps[spec.trial_id] = frozenset(self.inputs.curve_steps(spec))
        return self._steps[spec.trial_id]

    def score(self, base: Base, models: Mapping[str | None, str], task: str, step: int) -> None:
        """Score some models on one task and store their points."""
        loaded = self.inputs.tasks[task]
        few = replace(
            loaded, validation=loaded.validation[: self.inputs.config.train.evaluate_items]
        )
        settings = self.inputs.config.evaluate
        found, _ = evaluate_with_failures(
            base, self.inputs.encoder, few, "validation", models, settings
        )
        self.ledger.commit_curve([point_of(record, step) for record, _ in found.values()])


@dataclass(slots=True)
class EarlyStopping:
    """Tells trials with an early stop the in-domain scores that :class:`LearningCurve` stored."""

    ledger: Ledger
    inputs: PreparedStudy

    def __call__(self, step: int, base: Base, trial_states: Sequence[TrialState]) -> None:
        """A point that is not there, because the run is to stop, is told when it goes on."""
        for trial_state in trial_states:
            spec = trial_state.spec
            if trial_state.early_stop is None or step not in self.inputs.curve_steps(spec):
                continue
            point = self.ledger.curve_point((spec.trial_id, spec.task, step))
            if point is not None and takes_part(trial_state, step):
                trial_state.hear(step, point.score)


def takes_part(trial_state: TrialState, step: int) -> bool:
    """Whether a trial made the last of the ``step`` optimizer steps done, and can be scored."""
    return trial_state.is_active(step - 1) and is_alive(trial_state)


def in_turn(*looks: StepCallback) -> StepCallback:
    """Looks at a group one after another."""

    def look(step: int, base: Base, trial_states: Sequence[TrialState]) -> None:
        for each in looks:
            each(step, base, trial_states)

    return look


def is_alive(trial_state: TrialState) -> bool:
    """Whether a trial has weights that can be scored."""
    return trial_state.failure is None and all(
        bool(torch.isfinite(parameter).all()) for parameter in trial_state.parameters
    )


@contextmanager
def untouched(base: Base, trial_states: Sequence[TrialState]) -> Iterator[None]:
    """Layers evaluate inside, and are afterwards as they were."""
    training = [module for module in base.model.modules() if module.training]
    base.model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for trial_state in trial_states:
            if trial_state.adapter is not None:
                trial_state.adapter.weights_changed()  # tensors made in inference mode take no gradient


def in_dtype_of(frozen: Base, base: Base) -> Base:
    """A fully fine-tuned float32 model as it is scored after training: in the study's dtype.

    Where that is the dtype it trains in, ``base`` itself; else a copy, which lives as long as one
    step's scoring.
    """
    if base.model.dtype == frozen.model.dtype:
        return base
    model = copy.deepcopy(frozen.model)
    unwrap(model)
    trained = dict(base.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trained[name])
    return Base(model, base.tokenizer, base.record, base.folder, MultiLora(model))


def point_of(record: EvalRecord, step: int) -> CurvePoint:
    """What a curve keeps of an evaluation."""
    kept = ("trial_id", "task", "metric", "score", "standard_error", "n", "seconds", "num_tokens")
    return CurvePoint(step=step, **record.model_dump(include=set(kept)))
