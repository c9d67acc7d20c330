"""Predicted ranks against the ranks that finished studies found best."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rankscope.advise.mitigation import gain_and_forgetting
from rankscope.advise.retention import retention_tasks
from rankscope.config.loader import load_study_file
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.scaling import frozen_parameter
from rankscope.predict.features import open_base, predictions
from rankscope.predict.predictors import (
    best_rank,
    chosen_by_rank,
    mean_score,
    predict_ranks,
    score_predictors,
    screened,
)
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
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger, adapter_path
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


def truncated_adapter(adapter: Adapter, rank: int, adapter_name: str) -> Adapter:
    """A LoRA adapter truncated to ``rank`` with the least error in B A, ready to score."""
    parts = {
        name: LowRankUpdate(to_float64(a), to_float64(adapter.b[name])).truncated(rank)
        for name, a in adapter.a.items()
    }
    a = {name: frozen_parameter(part.A, part.A.device) for name, part in parts.items()}
    b = {name: frozen_parameter(part.B, part.B.device) for name, part in parts.items()}
    return replace(adapter, name=adapter_name, rank=rank, a=a, b=b)


def screen(
    inputs: PreparedStudy,
    ledger: Ledger,
    base: Base,
    trials: Sequence[TrialRecords],
    ranks: Sequence[int],
) -> dict[tuple[int, str, Split], list[float]]:
    """Scores of trained adapters truncated to each rank: (rank, task, split) -> one per trial.
    ``trials`` are the seeds of one arm, scored on its training task and the retention tasks."""
    task = trials[0].spec.task
    names = [task, *(t.name for t in inputs.config.evaluate.retention if t.name != task)]
    scores: dict[tuple[int, str, Split], list[float]] = {}
    for trial in trials:
        folder = ledger.checked_path(adapter_path(trial.spec.trial_id))
        adapter = load_adapter(folder, trial.spec.trial_id, base.record).to(base.device)
        adapter_names: dict[str | None, str] = {}
        try:
            for rank in ranks:
                truncated = truncated_adapter(adapter, rank, f"truncated to {rank}")
                base.multi_lora.attach(truncated)
                adapter_names[truncated.name] = truncated.name
            for name in names:
                for split in ("validation", "test"):
                    records = evaluate_task(
                        base,
                        inputs.encoder,
                        inputs.tasks[name],
                        split,
                        adapter_names,
                        inputs.config.evaluate,
                    )
                    for rank, adapter_name in zip(ranks, adapter_names, strict=True):
                        key: tuple[int, str, Split] = (rank, name, split)
                        scores.setdefault(key, []).append(records[adapter_name][0].score)
        finally:
            base.multi_lora.clear()
    return scores
