"""From a study file, and folders with what was trained for it, to what predictors say."""

from collections.abc import Sequence
from pathlib import Path

from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.models.base import Base
from rankscope.models.load import load_base
from rankscope.predict.features import features_of
from rankscope.predict.predictors import Evidence, ScreenCurve, predict_ranks
from rankscope.predict.screens import measured_curves, run_subset
from rankscope.progress import ProgressReporter
from rankscope.records import TaskPrediction
from rankscope.run.prepare import prepare_study
from rankscope.run.prepared import PreparedStudy


def predict_study(
    config: StudyConfig, screen: Path | None = None, reporter: ProgressReporter | None = None
) -> tuple[TaskPrediction, ...]:
    """screen: folder of the subset study, which is run or continued; by default none is."""
    inputs = prepare_study(config)
    check_ranks(inputs)
    if screen is not None:
        run_subset(inputs, screen, reporter)
    return predict_tasks(inputs, open_base(inputs), [] if screen is None else [screen])


def open_base(inputs: PreparedStudy) -> Base:
    config = inputs.config
    return load_base(config.model, inputs.device, inputs.dtype, quantize=config.quantize)


def check_ranks(inputs: PreparedStudy) -> None:
    if not any(t.rank and t.alpha for t in inputs.trials):
        raise UserError("predict: no arm of the study has a rank to predict")


def predict_tasks(
    inputs: PreparedStudy, base: Base, folders: Sequence[Path]
) -> tuple[TaskPrediction, ...]:
    """folders: finished studies of the same tasks, on all rows or on a subset."""
    predicted = []
    for task in inputs.config.tasks:
        trials = [t for t in inputs.trials if t.task == task.name and t.rank and t.alpha]
        ranks = tuple(sorted({t.rank for t in trials if t.rank is not None}))
        curves: dict[str, ScreenCurve] = {}
        for folder in folders:
            curves |= measured_curves(inputs, base, folder, task.name)
        evidence = Evidence(
            features=features_of(inputs, base, trials[0], ranks),
            ranks=ranks,
            margin=inputs.config.objective.margin,
            curves=curves,
        )
        predicted.append(
            TaskPrediction(
                task=task.name,
                ranks=ranks,
                features=evidence.features,
                predictions=predict_ranks(evidence),
            )
        )
    return tuple(predicted)
