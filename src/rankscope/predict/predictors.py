"""Rules that predict the best rank before training.

They are hypotheses: no predictor of the best rank is established. ``backtest`` counts how often
each is right, next to the constant r = 32."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.rslora import RsLoraMethod
from rankscope.records import (
    BacktestTask,
    Predictor,
    PredictorFeatures,
    PredictorScore,
    RankPrediction,
    Split,
    StudyRecords,
    TrialRecords,
)

VARIANCE = 0.9  # Share of the inputs' variance that a sufficient rank explains
USUAL_RANK = 32


def predict_ranks(features: PredictorFeatures, ranks: Sequence[int]) -> tuple[RankPrediction, ...]:
    """Every predictor's rank among ``ranks``, without predictors whose features are missing."""
    ranks = sorted(set(ranks))
    ranked = [_capacity(features, ranks)]
    for kind, value in (
        ("gradient_effective_rank", features.gradient_effective_rank),
        ("gradient_stable_rank", features.gradient_stable_rank),
    ):
        if value is not None:
            name = kind.replace("_", " ")
            why = f"the mean {name} of the target matrices is {value:.1f}"
            ranked.append(_named(kind, at_least(ranks, value), why))  # type: ignore[arg-type]
    ranked += [_input_variance(features, ranks), _base_score(features, ranks)]
    usual = min(ranks, key=lambda rank: abs(math.log2(rank / USUAL_RANK)))
    ranked.append(_named("always_32", usual, f"the rank closest to {USUAL_RANK}"))
    return tuple(ranked)


def at_least(ranks: Sequence[int], wanted: float) -> int:
    return min((rank for rank in ranks if rank >= wanted), default=max(ranks))


def _named(predictor: Predictor, rank: int, why: str) -> RankPrediction:
    return RankPrediction(predictor=predictor, rank=rank, why=why)


def _capacity(features: PredictorFeatures, ranks: Sequence[int]) -> RankPrediction:
    """The smallest rank with a parameter for each completion token."""
    tokens, sizes = features.num_label_tokens, features.lora_parameters
    rank = min((r for r in ranks if sizes[r] >= tokens), default=max(ranks))
    return _named(
        "capacity", rank, f"{tokens:,} completion tokens, {sizes[rank]:,} parameters at r = {rank}"
    )


def _input_variance(features: PredictorFeatures, ranks: Sequence[int]) -> RankPrediction:
    share = features.input_variance
    rank = min((r for r in ranks if share[r] >= VARIANCE), default=max(ranks))
    why = f"{rank} directions explain {share[rank]:.0%} of the inputs' variance"
    return _named("input_variance", rank, f"{why}; {VARIANCE:.0%} counts as enough")


def _base_score(features: PredictorFeatures, ranks: Sequence[int]) -> RankPrediction:
    """The lower the base's score, the higher the rank, log-linear over ``ranks``."""
    chance = features.chance or 0.0
    known = (features.base_score - chance) / (1 - chance) if chance < 1 else 0.0
    missing = 1 - min(1.0, max(0.0, known)) if features.base_score >= 0 else 1.0
    wanted = min(ranks) * (max(ranks) / min(ranks)) ** missing
    rank = min(ranks, key=lambda r: abs(math.log2(r / wanted)))
    score = f"the base scores {features.base_score:.3f}, {features.base_loss:.2f} nats per token"
    return _named("base_score", rank, f"{score}: {missing:.0%} is left to learn")


def screened(curve: Mapping[int, float], margin: float, whole: int) -> RankPrediction:
    """The smallest rank to which an adapter can be truncated at a loss below ``margin``. ``curve``:
    rank -> validation score of the adapter of rank ``whole`` truncated to it."""
    rank = best_rank(curve, margin)
    why = f"r = {whole} scores {curve[whole]:.3f}, truncated to {rank} {curve[rank]:.3f}"
    return _named("truncation_screen", rank, why)


def best_rank(curve: Mapping[int, float], margin: float) -> int:
    best = max(curve.values())
    return min(rank for rank, score in curve.items() if score >= best - margin)


def chosen_by_rank(study: StudyRecords, task: str) -> dict[int, list[TrialRecords]]:
    """By rank of plain LoRA, the trials at the learning rate with the best validation score.

    Arms that differ from the study's first one in more than rank and learning rate are left out, so
    that the curve over ranks shows only the rank.
    """
    trials = [
        t
        for t in study.trials
        if t.spec.task == task
        and t.status == "done"
        and t.spec.method in (LoraMethod.name, RsLoraMethod.name)
        and not t.spec.mitigations
    ]
    if not trials:
        return {}
    alike = [t for t in trials if _curve_settings(t) == _curve_settings(trials[0])]
    groups: dict[tuple[int, float], list[TrialRecords]] = {}
    for trial in alike:
        assert trial.spec.rank is not None
        groups.setdefault((trial.spec.rank, trial.spec.lr), []).append(trial)
    chosen: dict[int, tuple[float, list[TrialRecords]]] = {}
    for (rank, _), group in groups.items():
        score = mean_score(study, group, task, "validation")
        if score is not None and (rank not in chosen or score > chosen[rank][0]):
            chosen[rank] = (score, group)
    return {rank: chosen[rank][1] for rank in sorted(chosen)}


def _curve_settings(trial: TrialRecords) -> tuple[object, ...]:
    spec = trial.spec
    ratio = None if not (spec.alpha and spec.rank) else spec.alpha / spec.rank
    return spec.method, ratio, spec.targets, spec.dropout, *spec.overrides.items()


def mean_score(
    study: StudyRecords, trials: Sequence[TrialRecords], task: str, split: Split
) -> float | None:
    records = [study.evals.get((t.spec.trial_id, task, split)) for t in trials]
    scores = [record.score for record in records if record is not None]
    return float(np.mean(scores)) if scores and len(scores) == len(trials) else None


def score_predictors(tasks: Sequence[BacktestTask]) -> tuple[PredictorScore, ...]:
    outcomes: dict[Predictor, list[tuple[bool, float, float]]] = {}
    for task in tasks:
        trained = {p.rank: p.trained for p in task.curve if p.trained is not None}
        best = trained[task.best_rank]
        for named in task.prediction.predictions:
            if named.rank not in trained:
                continue
            outcomes.setdefault(named.predictor, []).append(
                (
                    named.rank == task.best_rank,
                    abs(math.log2(named.rank / task.best_rank)),
                    max(0.0, best - trained[named.rank]),
                )
            )
    return tuple(
        PredictorScore(
            predictor=predictor,
            tasks=len(rows),
            right=sum(right for right, _, _ in rows),
            doublings=float(np.mean([off for _, off, _ in rows])),
            regret=float(np.mean([cost for _, _, cost in rows])),
        )
        for predictor, rows in outcomes.items()
    )
