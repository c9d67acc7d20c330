"""Predicted ranks against the ranks that finished studies found best."""

from collections.abc import Sequence
from pathlib import Path

from rankscope.config.loader import load_study_file
from rankscope.errors import UserError
from rankscope.predict.hit_table import kendall_tau
from rankscope.predict.predictions import open_base, predict_tasks
from rankscope.predict.predictors import best_rank
from rankscope.predict.screens import chosen_by_rank, mean_score, run_subset, trials_by_point
from rankscope.progress import ProgressReporter
from rankscope.records import Backtest, BacktestTask, Split, StudyRecords, TaskPrediction
from rankscope.run.prepare import prepare_study
from rankscope.store import Ledger
from rankscope.store.history import check_same_model, check_same_tasks


def backtest(
    folders: Sequence[Path],
    screens: Path | None = None,
    reporter: ProgressReporter | None = None,
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
    curves = {task.name: scores_by_rank(study, task.name) for task in study.tasks}
    if all(len(curve) < 2 for curve in curves.values()):
        return []
    inputs = prepare_study(load_study_file(folder / "study.resolved.yaml"))
    check_same_tasks(folder, {task.name: task for task in study.tasks}, inputs.task_records)
    if screen is not None:
        run_subset(inputs, screen, reporter)
    base = open_base(inputs)
    check_same_model(folder, study.model, base.record)
    folders = [folder] if screen is None else [folder, screen]
    return [
        backtest_task(study, prediction, curves[prediction.task], screen)
        for prediction in predict_tasks(inputs, base, folders)
        if len(curves[prediction.task]) > 1
    ]


def backtest_task(
    study: StudyRecords, prediction: TaskPrediction, curve: dict[int, float], screen: Path | None
) -> BacktestTask:
    task, model, chosen = prediction.task, study.model, chosen_by_rank(study, prediction.task)
    arms_tau = None
    if screen is not None:
        with Ledger.open(screen, write=False) as ledger:
            subset = scores_by_arm(ledger.load(), task, "validation")
        arms_tau = kendall_tau(subset, scores_by_arm(study, task, "test"))
    return BacktestTask(
        study=study.name,
        family="pocket" if study.config.model.pocket else f"{model.label}, {task}",
        model=model.label,
        model_sha256=model.sha256,
        created=study.provenance.created,
        rankscope=study.provenance.rankscope,
        seeds=min(len(chosen[rank]) for rank in curve),
        items=study.task(task).rows["test"],
        margin=study.config.objective.margin,
        prediction=prediction,
        curve=curve,
        best_rank=best_rank(curve, study.config.objective.margin),
        arms_tau=arms_tau,
    )


def scores_by_rank(study: StudyRecords, task: str) -> dict[int, float]:
    """Test score of each rank at the learning rate that its validation score chose."""
    chosen = chosen_by_rank(study, task)
    scores = {rank: mean_score(study, trials, task, "test") for rank, trials in chosen.items()}
    return {rank: score for rank, score in scores.items() if score is not None}


def scores_by_arm(study: StudyRecords, task: str, split: Split) -> dict[tuple[int, float], float]:
    """Mean score over seeds by rank and learning rate."""
    points = trials_by_point(study, task)
    scores = {point: mean_score(study, trials, task, split) for point, trials in points.items()}
    return {point: score for point, score in scores.items() if score is not None}
