"""Predicted ranks against the ranks that finished studies found best.

A prediction is off by some doublings, loses score, and orders the ranks.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rankscope.advise.ranks import curve_models
from rankscope.config.loader import load_study_file
from rankscope.errors import UserError
from rankscope.predict.features import open_base, predict_tasks
from rankscope.predict.predictors import BASELINES, PREDICTORS, best_rank
from rankscope.predict.screens import rank_scores, run_subset
from rankscope.progress import ProgressReporter
from rankscope.records import (
    BASE,
    Backtest,
    BacktestTask,
    PredictorScore,
    RankPrediction,
    StudyRecords,
    TaskPrediction,
)
from rankscope.run.prepare import prepare
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
        raise UserError(
            "predict --backtest", "two studies whose folders have one name", do="rename one"
        )
    by_folder = {
        folder: backtest_study(folder, screens and screens / folder.resolve().name, reporter)
        for folder in folders
    }
    tasks = [task for of_study in by_folder.values() for task in of_study]
    if not tasks:
        raise UserError(
            "predict --backtest",
            "no study with a training task whose ranks, two or more, were all tested as plain LoRA",
            "folders that 'rankscope run' wrote",
        )
    skipped = tuple(str(folder) for folder, of_study in by_folder.items() if not of_study)
    return Backtest(tasks=tuple(tasks), skipped=skipped)


def backtest_study(
    folder: Path, screen: Path | None = None, reporter: ProgressReporter | None = None
) -> list[BacktestTask]:
    """The training tasks of a finished study with two ranks or more; possibly none. A predictor may
    name any of them, so each needs a test score, which an adaptive study may not have."""
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    curves = dict[str, dict[int, float]]()
    for task in (task.name for task in study.tasks):
        specs = [trial.spec for trial in study.trials if trial.spec.task == task]
        curve = rank_scores(study, task)
        if len(curve) > 1 and curve.keys() >= {s.rank for s in specs if s.rank and s.alpha}:
            curves[task] = curve
    if not curves:
        return []
    inputs = prepare(load_study_file(folder / "study.resolved.yaml"))
    check_same_tasks(folder, {task.name: task for task in study.tasks}, inputs.task_records)
    _check_same_trials(folder, study, inputs)
    subset = None if screen is None else run_subset(inputs, screen, reporter)
    return [
        backtest_task(study, prediction, curves[prediction.task])
        for prediction in predict_tasks(inputs, open_base(inputs), subset, study)
        if prediction.task in curves
    ]


def _check_same_trials(folder: Path, study: StudyRecords, inputs: PreparedStudy) -> None:
    """Refuse a study whose base, training rows or settings are not those of its trials."""
    given = {trial.trial_id for trial in inputs.trials}
    ids = [trial.spec.trial_id for trial in study.trials if trial.spec.trial_id not in given]
    if ids:
        raise UserError(
            folder,
            f"{len(ids)} trials that its study file no longer gives, such as {ids[0]}",
            "the base, dtype, training rows, settings and version of Rankscope that they were "
            "trained with",
            "put these back, or run the study again in another folder",
        )


def backtest_task(
    study: StudyRecords, prediction: TaskPrediction, curve: dict[int, float]
) -> BacktestTask:
    task, model, margin = prediction.task, study.model, study.config.objective.margin
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
    )


PAST_RECORD = "past_record.json"
"""What ``predict --backtest`` printed as JSON; docs/findings names its studies."""


def past_record() -> tuple[BacktestTask, ...]:
    text = (resources.files("rankscope.predict") / PAST_RECORD).read_text("utf-8")
    return Backtest.model_validate(json.loads(text)["backtest"]).tasks


def kendall_tau(first: Mapping[Any, float], second: Mapping[Any, float]) -> float | None:
    """Tau-b over the keys that both have; None if either is constant there."""
    from scipy import stats

    keys = [key for key in first if key in second]
    if len({first[key] for key in keys}) < 2 or len({second[key] for key in keys}) < 2:
        return None
    tau = stats.kendalltau([first[k] for k in keys], [second[k] for k in keys])
    return float(tau.statistic)


def _rank_order(prediction: RankPrediction, ranks: Iterable[int]) -> dict[int, float]:
    """What a prediction expects of each rank; one that only names a rank expects the less, the more
    doublings away."""
    named = prediction.rank
    if prediction.scores or named is None:
        return dict(prediction.scores)
    return {rank: -abs(math.log2(rank / named)) for rank in ranks}


def score_predictors(tasks: Sequence[BacktestTask]) -> tuple[PredictorScore, ...]:
    """The hit table, in the order of ``PREDICTORS``; predictors without any answer are left out."""
    scores = []
    for predictor in PREDICTORS:
        score = _score(predictor.name, tasks)
        if score is None:
            continue
        if predictor.name not in BASELINES and predictor.needs != "trained":
            score = score.model_copy(update={"p_better": _p_better(predictor.name, tasks)})
        scores.append(score)
    return tuple(scores)


def _p_better(name: str, tasks: Sequence[BacktestTask]) -> float | None:
    """By Student's t over the families in which both named a rank, with a flat prior."""
    from scipy import stats

    found = []
    for baseline in BASELINES:
        both = [(t, a, b) for t in tasks if (a := _named(name, t)) and (b := _named(baseline, t))]
        less = _by_family((t, t.curve[a] - t.curve[b]) for t, a, b in both)
        if len(less) > 1:
            mean, error = float(np.mean(less)), float(np.std(less, ddof=1)) / math.sqrt(len(less))
            t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
            found.append(float(stats.t.cdf(t, len(less) - 1)))
    return min(found, default=None)


def _prediction(name: str, task: BacktestTask) -> RankPrediction | None:
    return next((p for p in task.prediction.predictions if p.predictor == name), None)


def _named(name: str, task: BacktestTask) -> int | None:
    prediction = _prediction(name, task)
    return None if prediction is None else prediction.rank


def _score(name: str, tasks: Sequence[BacktestTask]) -> PredictorScore | None:
    asked = [task for task in tasks if _prediction(name, task) is not None]
    answered = [(t, rank) for t in asked if (rank := _named(name, t)) is not None]
    if not asked:
        return None

    def tau(task: BacktestTask, rank: int) -> float | None:
        prediction = _prediction(name, task)
        assert prediction is not None
        return kendall_tau(_rank_order(prediction, task.curve), task.curve)

    def mean(value: Callable[[BacktestTask, int], float | None]) -> float | None:
        found = _by_family((task, value(task, rank)) for task, rank in answered)
        return float(np.mean(found)) if found else None

    return PredictorScore(
        predictor=name,
        tasks=len(answered),
        silent=len(asked) - len(answered),
        right=sum(rank == task.best_rank for task, rank in answered),
        doublings=mean(lambda t, rank: abs(math.log2(rank / t.best_rank))),
        lost=mean(lambda t, rank: max(t.curve.values()) - t.curve[rank]),
        tau=mean(tau),
    )


def _by_family(values: Iterable[tuple[BacktestTask, float | None]]) -> list[float]:
    """Means over the tasks of each family, of the values that are known."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for task, value in values:
        if value is not None:
            by_family[task.family].append(value)
    return [float(np.mean(of_family)) for of_family in by_family.values()]
