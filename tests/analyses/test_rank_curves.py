"""Curves over rank: the area by hand numbers, choices of learning rates, and coverage."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.recommend import recommend
from rankscope.analyses.rank_curves.figures import (
    CURVES,
    area_under,
    area_weights,
    draw_rank_curves,
    rank_curves,
)
from rankscope.formatting import POINTS, with_interval
from rankscope.records import BASE, StudyRecords, Variant
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
    figure = draw_rank_curves(StudyView(study, recommend(study)), "med")
    shown = figure.data.set_index("arm")
    base = study.evals[BASE, "general", "test"].score
    weights, scores = np.array([1 / 4, 1 / 2, 1 / 4]), {}
    # The nested rate is that of the better of its two runs.
    for name, lr in (("trained at each rank", RATE), ("slices of a nested run", 2e-3)):
        means = {
            task: [
                np.mean([study.evals[f"med-{r}-{lr:g}-{s}", task, "test"].score for s in (0, 1, 2)])
                for r in RANKS
            ]
            for task in ("med", "general")
        }
        rows = shown.loc[[*(f"{name} r={rank}" for rank in RANKS), f"{name} area"]]
        assert set(rows["learning rate"]) == {f"{lr:g}"}
        scores[lr] = 100 * np.array([*means["med"], weights @ means["med"]])
        assert list(rows["score, %"]) == pytest.approx(list(scores[lr]))
        changes = 100 * (np.array([*means["general"], weights @ means["general"]]) - base)
        assert list(rows["retention change, points"]) == pytest.approx(list(changes))
    assert len(shown) == 8
    assert list(rows["score beyond trained"]) == pytest.approx(list(scores[2e-3] - scores[RATE]))
    curves = rank_curves(study, "med")
    area = area_under(study, curves["nested"], ["med"], curves["trained"])
    assert area.seeds == 3
    assert f"slices of a nested run {with_interval(area, POINTS)}" in figure.finding
    plain = synthetic_study()
    assert draw_rank_curves(StudyView(plain, recommend(plain)), "med") is None


@pytest.mark.parametrize(
    ("kind", "whole", "ranks"),
    [
        ("truncated", "-32-0.001-", [2, 32]),  # 8 was not cut
        ("full", "-full-0.0005-", [2, 8]),
    ],
)
def test_truncations_are_those_of_the_largest_trained_rank_and_of_full_fine_tuning(
    kind: str, whole: str, ranks: list[int]
) -> None:
    """Made to score as what was trained at the rank."""
    study = synthetic_study(Truth(lrs=(RATE,)))
    evals, items = dict(study.evals), dict(study.items)
    for (model, task, split), record in study.evals.items():
        for rank in {2, 8} & {*ranks}:
            if model.startswith(f"med-{rank}-"):
                trial = model.replace(f"-{rank}-{RATE:g}-", whole)
                cut = Variant("truncated", rank).of(trial)
                evals[cut, task, split] = record
                items[cut, task, split] = study.items[model, task, split]
    study = replace(study, evals=evals, items=items)
    curves = rank_curves(study, "med")
    assert {name: list(curve) for name, curve in curves.items()} == {"trained": ranks, kind: ranks}
    assert area_under(study, curves[kind], ["med"], curves["trained"]).value == 0
    figure = draw_rank_curves(StudyView(study, recommend(study)), "med")
    assert CURVES[kind][0] in figure.finding


def test_the_interval_of_the_difference_between_areas_covers_the_truth() -> None:
    """Both kinds are equally good, so it has to cover zero in about 38 of 40 studies; 32 or fewer
    come once in a thousand times."""
    truth = Truth(lrs=(RATE, 2e-3), full_lrs=(), cross=(), num_items=150)
    covered = 0
    for seed in range(40):
        study = with_nested(synthetic_study(truth, seed))
        curves = rank_curves(study, "med")
        area = area_under(study, curves["nested"], ["med"], curves["trained"])
        covered += not area.is_clear_of_zero
    assert covered >= 33
