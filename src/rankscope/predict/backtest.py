"""Predicted ranks against the ranks that finished studies found best."""

from collections.abc import Sequence
from pathlib import Path

from rankscope.advise.rank_curves import curve_models
from rankscope.config.loader import load_study_file
from rankscope.errors import UserError
from rankscope.predict.features import open_base, predict_tasks
from rankscope.predict.hit_table import kendall_tau
from rankscope.predict.predictors import best_rank
from rankscope.predict.screens import rank_scores, run_subset, scores_by_arm
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, Backtest, BacktestTask, StudyRecords, TaskPrediction
from rankscope.run.prepare import prepare_study
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger
from rankscope.store.history import check_same_tasks


def backtest(
    folders: Sequence[Path], screens: Path | None = None, reporter: ProgressReporter | None = None
) -> Backtest:
    """What predictors say of finished studies.

    screens: folder of the subset studies, each under its study's name; missing ones are run.
    """
    if screens and len({folder.resolve().name for folder in folders}) < len(folders):
        raise UserError("predict --backtest: two studies have folders of the same name; rename one")
    by_folder = {
        folder: backtest_study(folder, screens and screens / folder.resolve().name, reporter)
        for folder in folders
    }
    tasks = [task for of_study in by_folder.values() for task in of_study]
    if not tasks:
        raise UserError(
            "predict --backtest: no study has finished LoRA trials at two ranks or more of one "
            "training task; expected folders that 'rankscope run' wrote"
        )
    skipped = tuple(str(folder) for folder, of_study in by_folder.items() if not of_study)
    return Backtest(tasks=tuple(tasks), skipped=skipped)


def backtest_study(
    folder: Path, screen: Path | None = None, reporter: ProgressReporter | None = None
) -> list[BacktestTask]:
    """The training tasks of a finished study with at least two ranks; possibly none."""
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    curves = {task.name: rank_scores(study, task.name) for task in study.tasks}
    if all(len(curve) < 2 for curve in curves.values()):
        return []
    inputs = prepare_study(load_study_file(folder / "study.resolved.yaml"))
    check_same_tasks(folder, {task.name: task for task in study.tasks}, inputs.task_records)
    _check_same_trials(folder, study, inputs)
    subset = None if screen is None else run_subset(inputs, screen, reporter)
    return [
        backtest_task(study, subset, prediction, curves[prediction.task])
        for prediction in predict_tasks(inputs, open_base(inputs), subset, study)
        if len(curves[prediction.task]) > 1
    ]


def _check_same_trials(folder: Path, study: StudyRecords, inputs: PreparedStudy) -> None:
    """Refuse a study whose base, training rows or settings are not those of its trials."""
    given = {trial.trial_id for trial in inputs.trials}
    ids = [trial.spec.trial_id for trial in study.trials if trial.spec.trial_id not in given]
    if ids:
        raise UserError(
            f"{folder}: found {len(ids)} trials that its study file no longer gives, such as "
            f"{ids[0]}, expected the base, dtype, training rows, settings and version of Rankscope "
            "that they were trained with; put these back, or run the study again in another folder"
        )


def backtest_task(
    study: StudyRecords,
    subset: StudyRecords | None,
    prediction: TaskPrediction,
    curve: dict[int, float],
) -> BacktestTask:
    task, model, margin = prediction.task, study.model, study.config.objective.margin
    arms_tau = None
    if subset is not None:
        first = scores_by_arm(subset, task, "validation")
        arms_tau = kendall_tau(first, scores_by_arm(study, task, "test"))
    return BacktestTask(
        study=study.name,
        family="pocket" if study.config.model.pocket else f"{model.label}, {task}",
        model=model.label,
        model_sha256=model.sha256,
        created=study.provenance.created,
        rankscope=study.provenance.rankscope,
        seeds=min(len(curve_models(study, task)["trained"][rank]) for rank in curve),
        items=study.evals[BASE, task, "test"].n,
        margin=margin,
        prediction=prediction,
        curve=curve,
        best_rank=best_rank(curve, margin),
        arms_tau=arms_tau,
    )
