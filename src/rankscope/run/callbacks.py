"""Scores while training: the points of each trial's learning-forgetting curve.

A point is what :func:`~.evaluate_task` gives for the weights of that step,
on the first items of the selection split. The pack that is looked at is left as it was: no random
number is drawn, no gradient, mask or mode changed, so a trial trains the same with and without.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rankscope.evaluate.evaluator import evaluate_apart
from rankscope.models.base import Base
from rankscope.models.multi_lora import Pack, unwrap
from rankscope.progress import SpeedMeter
from rankscope.records import CurvePoint, EvalRecord
from rankscope.run.prepare import StudyInputs
from rankscope.store import Artifact, Ledger, kept_path
from rankscope.train.loop import AfterStep
from rankscope.train.trial_state import Trainee


@dataclass(slots=True)
class KeptWeights:
    """Stores the weights that trials have after the steps that the study asks for."""

    ledger: Ledger
    inputs: StudyInputs
    write: Callable[[Trainee, Base, Path], str]
    """Writes a trial's weights into a folder."""

    def __call__(self, step: int, base: Base, trainees: Sequence[Trainee]) -> None:
        """Store what is due and not stored; part of the study once all of it is written."""
        artifacts: list[Artifact] = []
        for trainee in trainees:
            if step not in self.inputs.kept_steps(trainee.spec) or not takes_part(trainee, step):
                continue
            place = kept_path(trainee.spec, step)
            if not self.ledger.artifacts(place):
                with self.ledger.stage() as folder:
                    self.write(trainee, base, folder)
                    artifacts += self.ledger.publish(folder, place)
        if artifacts:
            self.ledger.commit_files(artifacts)


@dataclass(slots=True)
class Curves:
    """Scores the trials of a pack after the steps that the study asks for.

    What the loop calls after a step (:class:`~rankscope.train.loop.AfterStep`). Each task's points
    are stored as soon as they are known, and a stored point is not computed again.
    """

    ledger: Ledger
    inputs: StudyInputs
    frozen: Base
    """The untuned base, whose dtype every model is scored in."""
    meter: SpeedMeter
    should_stop: Callable[[], bool]
    _steps: dict[str, frozenset[int]] = field(default_factory=dict)

    def __call__(self, step: int, base: Base, trainees: Sequence[Trainee]) -> None:
        """Score whom it is time for; ends early, between two tasks, where the run is to stop."""
        due = {t.spec.trial_id: t for t in trainees if step in self.steps(t)}
        due = {trial_id: t for trial_id, t in due.items() if takes_part(t, step)}
        wanted = [
            (trial_id, task, step)
            for trial_id, trainee in due.items()
            for task in self.inputs.curve_tasks(trainee.spec.task)
        ]
        missing = self.ledger.missing_points(wanted) if wanted else []
        if not missing:
            return
        with self.meter.paused(), untouched(base, trainees):
            scored = in_dtype_of(self.frozen, base)
            for task in dict.fromkeys(task for _, task, _ in missing):
                if self.should_stop():
                    break
                self.meter.watcher.advance(step, f"scoring {task}")
                models = {
                    due[trial_id].slot: trial_id for trial_id, name, _ in missing if name == task
                }
                self.score(scored, models, task, step)

    def steps(self, trainee: Trainee) -> frozenset[int]:
        """After which steps a trial is scored."""
        spec = trainee.spec
        if spec.trial_id not in self._steps:
            self._steps[spec.trial_id] = frozenset(self.inputs.curve_steps(spec))
        return self._steps[spec.trial_id]

    def score(self, base: Base, models: Mapping[str | None, str], task: str, step: int) -> None:
        """Score some models on one task and store their points."""
        loaded = self.inputs.tasks[task]
        few = replace(loaded, selection=loaded.selection[: self.inputs.config.train.evaluate_items])
        settings = self.inputs.config.evaluate
        found, _ = evaluate_apart(base, self.inputs.encoder, few, "selection", models, settings)
        self.ledger.commit_curve([point_of(record, step) for record, _ in found.values()])


@dataclass(slots=True)
class EarlyStops:
    """Tells trials with an early stop the in-domain scores that :class:`Curves` stored."""

    ledger: Ledger
    inputs: StudyInputs

    def __call__(self, step: int, base: Base, trainees: Sequence[Trainee]) -> None:
        """A point that is not there, because the run is to stop, is told when it goes on."""
        for trainee in trainees:
            spec = trainee.spec
            if trainee.early_stop is None or step not in self.inputs.curve_steps(spec):
                continue
            point = self.ledger.curve_point((spec.trial_id, spec.task, step))
            if point is not None and takes_part(trainee, step):
                trainee.hear(step, point.score)


def takes_part(trainee: Trainee, step: int) -> bool:
    """Whether a trial made the last of the ``step`` optimizer steps done, and can be scored."""
    return trainee.is_active(step - 1) and is_alive(trainee)


def in_turn(*looks: AfterStep) -> AfterStep:
    """Looks at a pack one after another."""

    def look(step: int, base: Base, trainees: Sequence[Trainee]) -> None:
        for each in looks:
            each(step, base, trainees)

    return look


def is_alive(trainee: Trainee) -> bool:
    """Whether a trial has weights that can be scored."""
    return trainee.failure is None and all(
        bool(torch.isfinite(parameter).all()) for parameter in trainee.parameters
    )


@contextmanager
def untouched(base: Base, trainees: Sequence[Trainee]) -> Iterator[None]:
    """Layers evaluate inside, and are afterwards as they were."""
    training = [module for module in base.model.modules() if module.training]
    base.model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for trainee in trainees:
            if trainee.adapter is not None:
                trainee.adapter.weights_changed()  # tensors made in inference mode take no gradient


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
    return Base(model, base.tokenizer, base.record, base.folder, Pack(model))


def point_of(record: EvalRecord, step: int) -> CurvePoint:
    """What a curve keeps of an evaluation."""
    kept = ("trial_id", "task", "metric", "score", "standard_error", "n", "seconds", "num_tokens")
    return CurvePoint(step=step, **record.model_dump(include=set(kept)))
