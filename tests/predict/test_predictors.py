"""Rank predictors: each rule by hand, the truth of a curve, and how a backtest counts."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.advise.statistics.estimates import Comparison
from rankscope.predict.backtest import kendall_tau, past_record, score_predictors
from rankscope.predict.predictors import BASELINES, Evidence, ScreenCurve, best_rank, predict_ranks
from rankscope.predict.screens import measured_curves, rank_scores
from rankscope.records import BacktestTask, PredictorFeatures, RankPrediction, TaskPrediction

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


def evidence(**changes: Any) -> Evidence:
    return Evidence(features=features(**changes), ranks=RANKS, margin=0.02)


def named(**changes: Any) -> dict[str, int | None]:
    return {p.predictor: p.rank for p in predict_ranks(evidence(**changes))}


def test_every_rule_by_hand() -> None:
    """1,000 tokens need 3,200 parameters; 20 needs 32; 90 % of the variance is there at 32; a base
    at chance has all to learn."""
    assert named() == {
        "capacity": 32,
        "gradient_effective_rank": 32,
        "gradient_stable_rank": 2,
        "input_variance": 32,
        "base_score": 128,
        "axolotl_table": 8,
        "always_16": 8,  # of 8 and 32, which are equally close, the first
        "always_32": 32,
        "always_highest": 128,
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
        # Its table: 8, 16, 32 and 64, and 16 and 64 are not tried.
        ({"num_rows": 999}, "axolotl_table", 8),
        ({"num_rows": 1_000}, "axolotl_table", 8),
        ({"num_rows": 10_000}, "axolotl_table", 32),
        ({"num_rows": 99_999}, "axolotl_table", 32),
        ({"num_rows": 100_000}, "axolotl_table", 32),
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


def curve_of(scores: dict[int, float], base: float = 0.25, items: int = 200) -> ScreenCurve:
    """Two seeds of each rank that answer ``scores`` of the items right, alike."""
    ordered = np.arange(items) / items
    reference = (ordered < base).astype(float)
    return {
        rank: Comparison(np.stack([ordered < score] * 2).astype(float), reference)
        for rank, score in scores.items()
    }


def screen_answers(curve: ScreenCurve) -> dict[str, RankPrediction]:
    found = replace(evidence(), curves={"subset_trained": curve, "nested": curve})
    return {p.predictor: p for p in predict_ranks(found) if p.scores or p.rank is None}


def test_a_screen_names_the_smallest_rank_within_the_margin() -> None:
    """Whoever measures a curve gets a predictor for it: here the subset and a nested adapter."""
    answers = screen_answers(curve_of({2: 0.5, 8: 0.7, 32: 0.71, 128: 0.71}))
    assert {name: answer.rank for name, answer in answers.items()} == {
        "subset_screen": 8,
        "subset_power_law": 8,
        "nested": 8,
    }
    assert answers["nested"].scores == pytest.approx({2: 0.5, 8: 0.7, 32: 0.71, 128: 0.71})


@pytest.mark.parametrize(
    ("scores", "base", "level"),
    [
        ({2: 0.25, 8: 0.26, 32: 0.27}, 0.10, "guessing"),  # 27 % of 200 against a chance of 25 %
        ({2: 0.70, 8: 0.69, 32: 0.68}, 0.70, "the base"),
    ],
)
def test_a_screen_at_chance_or_at_the_base_cannot_tell(
    scores: dict[int, float], base: float, level: str
) -> None:
    for answer in screen_answers(curve_of(scores, base)).values():
        assert answer.rank is None
        assert answer.why == f"cannot tell: no rank is shown to score above {level}"


def backtest_task(
    study: str, family: str, curve: dict[int, float], *answers: RankPrediction
) -> BacktestTask:
    prediction = TaskPrediction(
        task="med", ranks=tuple(curve), features=features(), predictions=answers
    )
    changes = {
        "study": study,
        "family": family,
        "prediction": prediction,
        "curve": curve,
        "best_rank": best_rank(curve, 0.02),
    }
    return past_record()[0].model_copy(update=changes)


def answer(predictor: str, rank: int | None, **scores: float) -> RankPrediction:
    by_rank = {int(name[1:]): score for name, score in scores.items()}
    return RankPrediction(predictor=predictor, rank=rank, why="", scores=by_rank)


def test_a_hit_table_by_hand() -> None:
    """Three tasks, two of one family, which count half each."""
    curve = {2: 0.5, 8: 0.8, 32: 0.81}  # best rank 8
    tasks = [
        backtest_task("a", "f", curve, answer("capacity", 8), answer("always_16", 32)),
        backtest_task("b", "f", curve, answer("capacity", 2), answer("always_16", 32)),
        backtest_task("c", "g", curve, answer("capacity", 32), answer("always_16", 2)),
    ]
    capacity, baseline = score_predictors(tasks)
    assert (capacity.right, capacity.tasks, capacity.silent) == (1, 3, 0)
    assert capacity.doublings == pytest.approx((0 + 2) / 2 / 2 + 2 / 2)
    assert capacity.lost == pytest.approx((0.01 + 0.31) / 2 / 2 + 0 / 2)
    # Order of the ranks 2, 8, 32 by the distance from the named one, against .5 < .8 < .81. From 8
    # the others are equally far: pairs (2, 8) right, (8, 32) wrong, (2, 32) tied, so 0. From 2 it
    # is the reverse, from 32 the same.
    assert capacity.tau == pytest.approx((0 - 1) / 2 / 2 + 1 / 2)
    assert baseline.doublings == pytest.approx(2)
    assert baseline.lost == pytest.approx(0 / 2 + 0.31 / 2)
    # By family its test score is .16 lower and .31 higher: mean .075 with an error of .235, and the
    # t of one degree of freedom is Cauchy's distribution.
    assert capacity.p_better == pytest.approx(0.5 + math.atan(0.075 / 0.235) / math.pi)
    assert baseline.p_better is None


def test_kendalls_tau_by_hand() -> None:
    """Of the pairs of (1, 2, 3, 4) and (1, 3, 2, 4), five agree and one does not: 4 / 6."""
    first = dict(enumerate((1.0, 2.0, 3.0, 4.0)))
    assert kendall_tau(first, dict(enumerate((1.0, 3.0, 2.0, 4.0)))) == pytest.approx(4 / 6)
    # A tie in one: 5 pairs agree, none disagrees, tau-b = 5 / sqrt(5 x 6).
    tied = dict(enumerate((1.0, 2.0, 2.0, 4.0)))
    assert kendall_tau(first, tied) == pytest.approx(5 / 30**0.5)
    assert kendall_tau(first, {0: 0.0, 1: 1.0, 9: 5.0}) == pytest.approx(1)  # common keys alone
    assert kendall_tau(first, dict.fromkeys(first, 0.5)) is None


def test_one_that_cannot_tell_is_counted_apart() -> None:
    curve = {2: 0.5, 8: 0.8}
    tasks = [backtest_task(s, s, curve, answer("nested", r)) for s, r in (("a", None), ("b", 8))]
    (score,) = score_predictors(tasks)
    assert (score.tasks, score.silent, score.right, score.lost) == (1, 1, 1, 0)


def test_the_shipped_record_is_a_record_of_backtests() -> None:
    """The table is computed from it, and follows it: change a test score, and the table changes."""
    record = past_record()
    assert len({task.study for task in record}) >= 8
    scores = {s.predictor: s for s in score_predictors(record)}
    assert set(scores) >= {*BASELINES, "subset_screen", "subset_power_law", "truncation"}
    for task in record:
        assert task.best_rank == best_rank(task.curve, task.margin)
        assert (task.family == "pocket") == (task.model == "pocket")
        assert all(p.rank is None or p.rank in task.curve for p in task.prediction.predictions)
    first = record[0]
    worse = {rank: score / 2 for rank, score in first.curve.items()}
    changed = [first.model_copy(update={"curve": worse}), *record[1:]]
    after = {s.predictor: s for s in score_predictors(changed)}
    assert after["always_16"].lost != scores["always_16"].lost


def test_the_trained_curve_takes_each_ranks_rate_from_the_validation_split() -> None:
    study = synthetic_study(Truth(ranks=(2, 8), lrs=(1e-3, 2e-3), seeds=(0, 1)))
    curve, tested = measured_curves(study, "med")["trained"], rank_scores(study, "med")
    for rank in (2, 8):
        by_rate = {
            lr: [
                (study.evals[i, "med", "validation"].score, study.evals[i, "med", "test"].score)
                for i in (f"med-{rank}-{lr:g}-{seed}" for seed in (0, 1))
            ]
            for lr in (1e-3, 2e-3)
        }
        validation, test = max(np.mean(scores, axis=0).tolist() for scores in by_rate.values())
        assert curve[rank].tuned.mean() == pytest.approx(validation)
        assert tested[rank] == pytest.approx(test)
    assert measured_curves(synthetic_study(Truth(ranks=())), "med") == {}
