"""How predictors did on finished studies: off by how many doublings, score lost, order of ranks."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from rankscope.predict.predictors import BASELINES, PREDICTORS
from rankscope.records import Backtest, BacktestTask, PredictorScore, RankPrediction

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
        if predictor.name not in BASELINES and predictor.needs != "trained" and score.tasks:
            answered = [t for t in tasks if _named(predictor.name, t) is not None]
            others = [s for name in BASELINES if (s := _score(name, answered))]
            beats = all(_is_better(score, other) for other in others)
            score = score.model_copy(update={"beats_baselines": beats})
        scores.append(score)
    return tuple(scores)


def _is_better(score: PredictorScore, other: PredictorScore) -> bool:
    mine, its = (score.doublings, score.lost), (other.doublings, other.lost)
    pairs = [(a, b) for a, b in zip(mine, its, strict=True) if a is not None and b is not None]
    return mine != its and all(a <= b for a, b in pairs)


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

    return PredictorScore(
        predictor=name,
        tasks=len(answered),
        silent=len(asked) - len(answered),
        right=sum(rank == task.best_rank for task, rank in answered),
        doublings=_family_mean(answered, lambda t, rank: abs(math.log2(rank / t.best_rank))),
        lost=_family_mean(answered, lambda t, rank: max(t.curve.values()) - t.curve[rank]),
        tau=_family_mean(answered, tau),
    )


def _family_mean(
    answered: Sequence[tuple[BacktestTask, int]], value: Callable[[BacktestTask, int], float | None]
) -> float | None:
    """Mean over families of the means over their tasks, without those that have no value."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for task, rank in answered:
        if (known := value(task, rank)) is not None:
            by_family[task.family].append(known)
    means = [sum(values) / len(values) for values in by_family.values()]
    return sum(means) / len(means) if means else None
