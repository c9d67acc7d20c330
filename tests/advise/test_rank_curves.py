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
SLICES = tuple((rank, 2.0 * rank) for rank in RANKS)
TRAINED_RATE = 1e-3


def with_nested(study: StudyRecords) -> StudyRecords:
    """The study with all trials of other rates made slices of nested runs."""
    slices = {"method": "nested", "nested": SLICES}
    return with_specs(study, lambda s: {} if s.lr == TRAINED_RATE or s.rank is None else slices)


@pytest.mark.parametrize(
    ("ranks", "weights"),
    [
        ([8], [1]),
        ([2, 32], [1 / 2, 1 / 2]),
        ([2, 8, 32, 128], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        ([2, 4, 16], [1 / 6, 1 / 2, 1 / 3]),  # steps of 1 and 2 over a width of 3
    ],
)
def test_weights_of_an_area_are_those_of_the_trapezoids(
    ranks: list[int], weights: list[float]
) -> None:
    assert area_weights(ranks) == pytest.approx(weights)


def test_points_and_areas_are_means_of_the_scores() -> None:
    rates = (TRAINED_RATE, 2e-3, 4e-3)

    def accuracy(rank: int | None, lr: float) -> float:
        return 0.5 + 0.05 * np.log2(rank or 64) + 0.1 * (lr == 2e-3)

    study = with_nested(synthetic_study(Truth(lrs=rates, accuracy=accuracy)))
    (of_task,) = compare_rank_curves(study)
    trained, nested = of_task.curves
    assert (trained.kind, trained.rates) == ("trained", (TRAINED_RATE,))
    assert (nested.kind, nested.rates) == ("nested", (2e-3,))  # the better of its two runs

    def mean(rank: int, lr: float, task: str) -> float:
        ids = [t.spec.trial_id for t in study.trials if (t.spec.rank, t.spec.lr) == (rank, lr)]
        return float(np.mean([study.evals[i, task, "test"].score for i in ids]))

    base = study.evals[BASE, "general", "test"].score
    for curve, lr in ((trained, TRAINED_RATE), (nested, 2e-3)):
        scores = [mean(rank, lr, "med") for rank in RANKS]
        falls = [base - mean(rank, lr, "general") for rank in RANKS]
        assert [p.rank for p in curve.points] == [*RANKS, None]
        assert [p.score.value for p in curve.points] == pytest.approx(
            [*scores, scores[0] / 4 + scores[1] / 2 + scores[2] / 4]
        )
        found = [p.forgetting.value for p in curve.points if p.forgetting]
        assert found == pytest.approx([*falls, falls[0] / 4 + falls[1] / 2 + falls[2] / 4])
    for ours, theirs in zip(nested.points, trained.points, strict=True):
        assert ours.more_score.value == pytest.approx(ours.score.value - theirs.score.value)
        assert ours.more_score.seeds == 3
    view = StudyView(study, recommend(study))
    figure = draw_rank_curves(view, "med")
    assert len(figure.data) == 8
    area = nested.points[-1].more_score
    assert f"slices of a nested run {with_interval(area, POINTS)}" in figure.finding


def test_without_nested_runs_and_truncations_there_is_nothing_to_compare() -> None:
    assert compare_rank_curves(synthetic_study()) == ()


def test_truncations_are_those_of_the_largest_trained_rank() -> None:
    study = synthetic_study(Truth(lrs=(TRAINED_RATE,)))
    evals, items = dict(study.evals), dict(study.items)
    for (model, task, split), record in study.evals.items():
        rank, _, rest = model.removeprefix("med-").partition("-")
        if rank == "2":
            cut = Variant("truncated", 2).of(f"med-32-{rest}")
            evals[cut, task, split] = record
            items[cut, task, split] = study.items[model, task, split]
    (of_task,) = compare_rank_curves(replace(study, evals=evals, items=items))
    trained, truncated = of_task.curves
    assert [p.rank for p in truncated.points] == [2, 32, None]  # 8 was not cut
    assert [p.score for p in truncated.points] == [p.score for p in trained.points]
    assert all(p.more_score and p.more_score.value == 0 for p in truncated.points)


def test_the_interval_of_the_difference_between_areas_covers_the_truth() -> None:
    """Both kinds are equally good, so it has to cover zero in about 38 of 40 studies; 32 or fewer
    come once in a thousand times."""
    truth = Truth(lrs=(TRAINED_RATE, 2e-3), full_lrs=(), cross=(), num_items=150)
    covered = 0
    for seed in range(40):
        (of_task,) = compare_rank_curves(with_nested(synthetic_study(truth, seed)))
        area = of_task.curves[1].points[-1].more_score
        covered += not area.is_clear_of_zero
    assert covered >= 33
