"""Predicted ranks against the ranks that finished studies found best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rankscope.advise.mitigation import gain_and_forgetting
from rankscope.advise.retention import retention_tasks
from rankscope.config.loader import load_study_file
from rankscope.errors import UserError
from rankscope.predict.features import open_base, predictions
from rankscope.predict.predictors import (
    best_rank,
    chosen_by_rank,
    mean_score,
    predict_ranks,
    score_predictors,
    screened,
)
from rankscope.predict.truncation_screen import screen
from rankscope.records import (
    BASE,
    Backtest,
    BacktestTask,
    RankScore,
    Split,
    StudyRecords,
    TrialRecords,
)
from rankscope.run.prepare import prepare_study
from rankscope.store import Ledger
from rankscope.store.history import check_same_model, check_same_tasks


def backtest(folders: Sequence[Path]) -> Backtest:
    by_folder = {folder: backtest_study(folder) for folder in folders}
    tasks = [task for of_study in by_folder.values() for task in of_study]
    if not tasks:
        raise UserError(
            "predict --backtest: no study has finished LoRA trials at two ranks or more of one "
            "training task; expected folders that 'rankscope run' wrote"
        )
    skipped = tuple(str(folder) for folder, of_study in by_folder.items() if not of_study)
    return Backtest(tasks=tuple(tasks), scores=score_predictors(tasks), skipped=skipped)


def backtest_study(folder: Path) -> list[BacktestTask]:
    """The training tasks of a finished study with at least two ranks; possibly none."""
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
        if not any(len(chosen_by_rank(study, task.name)) > 1 for task in study.tasks):
            return []
        inputs = prepare_study(load_study_file(folder / "study.resolved.yaml"))
        check_same_tasks(folder, {task.name: task for task in study.tasks}, inputs.task_records)
        base = open_base(inputs)
        check_same_model(folder, study.model, base.record)
        margin = study.config.objective.margin
        tasks = []
        for prediction in predictions(inputs, base):
            task = prediction.task
            chosen = chosen_by_rank(study, task)
            trained = {r: mean_score(study, group, task, "test") for r, group in chosen.items()}
            known = {rank: score for rank, score in trained.items() if score is not None}
            if len(known) < 2:
                continue
            ranks = tuple(sorted(known))
            largest = max(ranks)
            scores = screen(inputs, ledger, base, chosen[largest], ranks)
            curve = tuple(
                rank_score(study, task, rank, known[rank], chosen[rank], scores) for rank in ranks
            )
            truncated = {p.rank: p.truncated_validation or 0.0 for p in curve}
            predicted = predict_ranks(prediction.features, ranks)
            predicted += (screened(truncated, margin, largest),)
            tasks.append(
                BacktestTask(
                    study=study.name,
                    task=task,
                    prediction=prediction.model_copy(
                        update={"ranks": ranks, "predictions": predicted}
                    ),
                    curve=curve,
                    best_rank=best_rank(known, margin),
                    screened_rank=largest,
                )
            )
    return tasks


def rank_score(
    study: StudyRecords,
    task: str,
    rank: int,
    trained: float,
    trials: Sequence[TrialRecords],
    scores: Mapping[tuple[int, str, Split], Sequence[float]],
) -> RankScore:
    falls = [
        base.score - fmean(scores[rank, t.name, "test"])
        for t in retention_tasks(study, task)
        if (base := study.evals.get((BASE, t.name, "test"))) is not None
    ]
    points = [gain_and_forgetting(study, task, t.spec.trial_id, "test") for t in trials]
    forgetting = [point[1] for point in points if point is not None]
    return RankScore(
        rank=rank,
        trained=trained,
        truncated=fmean(scores[rank, task, "test"]),
        truncated_validation=fmean(scores[rank, task, "validation"]),
        truncated_forgetting=fmean(falls) if falls else None,
        trained_forgetting=fmean(forgetting) if forgetting else None,
    )
