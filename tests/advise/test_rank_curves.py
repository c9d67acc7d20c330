"""Curves over rank: the area by hand numbers, choices of learning rates, and coverage."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.rank_curves import area_weights, compare_rank_curves
from rankscope.advise.recommend import recommend
from rankscope.formatting import POINTS, with_interval
from rankscope.records import BASE, StudyRecords, Variant
from rankscope.report.figures.rank_curves import draw_rank_curves
from rankscope.report.study_view import StudyView

RANKS = (2, 8, 32)
RATE = 1e-3


def with_nested(study: StudyRecords) -> StudyRecords:
    """The study with all trials of other rates made slices of nested runs."""
    slices = {"method": "nested", "nested": tuple((rank, 2.0 * rank) for rank in RANKS)}
    return with_specs(study, lambda s: {} if s.lr == RATE or s.rank is None else slices)


@pytest.mark.parametrize(
    ("ranks", "weights"),
    [
        ([8], [1]),
        ([2, 8, 32, 128], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        ([2, 4, 16], [1 / 6, 1 / 2, 1 / 3]),  # steps of 1 and 2 over a width of 3
    ],
)
def test_weights_of_an_area_are_those_of_the_trapezoids(
    ranks: list[int], weights: list[float]
) -> None:
    assert area_weights(ranks) == pytest.approx(weights)


def test_points_and_areas_are_means_of_the_scores() -> None:
    def accuracy(rank: int | None, lr: float) -> float:
        return 0.5 + 0.05 * np.log2(rank or 64) + 0.1 * (lr == 2e-3)

    study = with_nested(synthetic_study(Truth(lrs=(RATE, 2e-3, 4e-3), accuracy=accuracy)))
    (of_task,) = compare_rank_curves(study)
    trained, nested = of_task.curves
    assert (trained.kind, trained.rates) == ("trained", (RATE,))
    assert (nested.kind, nested.rates) == ("nested", (2e-3,))  # the better of its two runs
    base = study.evals[BASE, "general", "test"].score
    for curve, lr in ((trained, RATE), (nested, 2e-3)):
        means = {
            task: [
                np.mean([study.evals[f"med-{r}-{lr:g}-{s}", task, "test"].score for s in (0, 1, 2)])
                for r in RANKS
            ]
            for task in ("med", "general")
        }
        weights = np.array([1 / 4, 1 / 2, 1 / 4])
        assert [p.rank for p in curve.points] == [*RANKS, None]
        scores = [*means["med"], weights @ means["med"]]
        assert [p.score.value for p in curve.points] == pytest.approx(scores)
        falls = base - np.array([*means["general"], weights @ means["general"]])
        assert [p.forgetting.value for p in curve.points] == pytest.approx(falls)
    for ours, theirs in zip(nested.points, trained.points, strict=True):
        assert ours.more_score.value == pytest.approx(ours.score.value - theirs.score.value)
        assert ours.more_score.seeds == 3
    figure = draw_rank_curves(StudyView(study, recommend(study)), "med")
    assert len(figure.data) == 8
    area = with_interval(nested.points[-1].more_score, POINTS)
    assert f"slices of a nested run {area}" in figure.finding
    assert compare_rank_curves(synthetic_study()) == ()


def test_truncations_are_those_of_the_largest_trained_rank() -> None:
    study = synthetic_study(Truth(lrs=(RATE,)))
    evals, items = dict(study.evals), dict(study.items)
    for (model, task, split), record in study.evals.items():
        if model.startswith("med-2-"):
            cut = Variant("truncated", 2).of(model.replace("-2-", "-32-", 1))
            evals[cut, task, split] = record
            items[cut, task, split] = study.items[model, task, split]
    (of_task,) = compare_rank_curves(replace(study, evals=evals, items=items))
    trained, truncated = of_task.curves
    assert [p.rank for p in truncated.points] == [2, 32, None]  # 8 was not cut
    assert [p.score for p in truncated.points] == [p.score for p in trained.points]
    assert {p.more_score.value for p in truncated.points} == {0}


def test_the_interval_of_the_difference_between_areas_covers_the_truth() -> None:
    """Both kinds are equally good, so it has to cover zero in about 38 of 40 studies; 32 or fewer
    come once in a thousand times."""
    truth = Truth(lrs=(RATE, 2e-3), full_lrs=(), cross=(), num_items=150)
    covered = 0
    for seed in range(40):
        (of_task,) = compare_rank_curves(with_nested(synthetic_study(truth, seed)))
        covered += not of_task.curves[1].points[-1].more_score.is_clear_of_zero
    assert covered >= 33
