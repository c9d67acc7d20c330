"""Rank predictors: each rule by hand, the truth of a curve, and how a backtest counts."""

from typing import Any

import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.predict.predictors import (
    best_rank,
    chosen_by_rank,
    predict_ranks,
    score_predictors,
    screened,
)
from rankscope.records import (
    BacktestTask,
    PredictorFeatures,
    RankPrediction,
    RankScore,
    TaskPrediction,
)

RANKS = (2, 8, 32, 128)


def features(**changes: Any) -> PredictorFeatures:
    values: dict[str, Any] = {
        "task": "med",
        "num_rows": 100,
        "num_label_tokens": 1000,
        "lora_parameters": {2: 200, 8: 800, 32: 3200, 128: 12800},
        "rows_seen": 50,
        "base_loss": 2.0,
        "base_score": 0.25,
        "base_items": 100,
        "chance": 0.25,
        "gradient_effective_rank": 20.0,
        "gradient_stable_rank": 1.5,
        "input_variance": {2: 0.5, 8: 0.89, 32: 0.95, 128: 1.0},
    }
    return PredictorFeatures.model_validate(values | changes)


def named(**changes: Any) -> dict[str, int]:
    return {p.predictor: p.rank for p in predict_ranks(features(**changes), RANKS)}


def test_every_rule_by_hand() -> None:
    """1,000 tokens need 3,200 parameters; 20 needs 32; 90 % of the variance is there at 32; a base
    at chance has all to learn."""
    assert named() == {
        "capacity": 32,
        "gradient_effective_rank": 32,
        "gradient_stable_rank": 2,
        "input_variance": 32,
        "base_score": 128,
        "always_32": 32,
    }


@pytest.mark.parametrize(
    ("changes", "predictor", "rank"),
    [
        ({"num_label_tokens": 10**9}, "capacity", 128),
        ({"num_label_tokens": 1}, "capacity", 2),
        ({"gradient_effective_rank": 500.0}, "gradient_effective_rank", 128),
        ({"base_score": 1.0}, "base_score", 2),
        # Half of what is above chance is known: 2 x 64^(1/2) = 16, nearest on the logarithm 8 and
        # 32 alike; the first counts.
        ({"base_score": 0.625}, "base_score", 8),
        ({"base_score": -2.5, "chance": None}, "base_score", 128),
    ],
)
def test_ends_and_middles(changes: dict[str, Any], predictor: str, rank: int) -> None:
    assert named(**changes)[predictor] == rank


def test_without_a_gradient_its_predictors_are_left_out() -> None:
    assert "gradient_effective_rank" not in named(
        gradient_effective_rank=None, gradient_stable_rank=None
    )


def test_the_best_rank_is_the_smallest_within_the_margin() -> None:
    curve = {2: 0.5, 8: 0.79, 32: 0.8, 128: 0.78}
    assert best_rank(curve, 0.02) == 8
    assert best_rank(curve, 0.001) == 32
    assert screened(curve, 0.02, 128).rank == 8


def test_a_backtest_counts_hits_doublings_and_what_was_lost() -> None:
    curve = tuple(RankScore(rank=r, trained=s) for r, s in ((2, 0.5), (8, 0.8), (32, 0.81)))

    def task(rank: int) -> BacktestTask:
        prediction = TaskPrediction(
            task="med",
            ranks=(2, 8, 32),
            features=features(),
            predictions=(RankPrediction(predictor="capacity", rank=rank, why=""),),
        )
        return BacktestTask(study="s", task="med", prediction=prediction, curve=curve, best_rank=8)

    (score,) = score_predictors([task(8), task(2), task(32)])
    assert (score.right, score.tasks) == (1, 3)
    assert score.doublings == pytest.approx(4 / 3)  # 0, 2 and 2
    # The rank below loses .3; the one above, which scores .01 more, loses nothing.
    assert score.regret == pytest.approx(0.1)


def test_the_trained_curve_takes_each_ranks_rate_from_the_validation_split() -> None:
    study = synthetic_study(Truth(ranks=(2, 8), lrs=(1e-3, 2e-3), seeds=(0, 1)))
    chosen = chosen_by_rank(study, "med")
    assert sorted(chosen) == [2, 8]
    for rank, trials in chosen.items():
        assert {t.spec.rank for t in trials} == {rank}
        assert len({t.spec.lr for t in trials}) == 1
        assert len(trials) == 2
    assert chosen_by_rank(synthetic_study(Truth(ranks=())), "med") == {}
