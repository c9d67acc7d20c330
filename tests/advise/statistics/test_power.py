"""What could have been seen, and what it takes to see it."""

import pytest
from scipy import stats

from rankscope.advise.statistics.power import (
    data_needed,
    detectable,
    hidden_by_seeds,
    items_needed,
    minimum_detectable_effect,
)
from rankscope.records import Estimate

TEN_PERCENT = 0.1
Z = 1.959964 + 0.841621  # quantiles .975 and .8 of the normal distribution


def estimate(item_error: float | None, seed_error: float | None, seeds: int = 3) -> Estimate:
    return Estimate(
        value=0.03,
        low=None,
        high=None,
        n=100,
        seeds=seeds,
        item_error=item_error,
        seed_error=seed_error,
    )


def test_with_one_seed_it_is_the_formula_of_the_paired_design() -> None:
    error = (TEN_PERCENT / 100) ** 0.5
    found = detectable(estimate(error, None, seeds=1))
    assert found == pytest.approx(minimum_detectable_effect(100, TEN_PERCENT))
    assert found == pytest.approx(Z * error, rel=1e-5)


def test_few_seeds_are_paid_for_by_students_quantiles() -> None:
    # Two degrees of freedom: 4.303 and 1.061.
    by_hand = 4.302653 + 1.060660
    assert detectable(estimate(0.0, 0.01)) == pytest.approx(by_hand * 0.01, rel=1e-5)
    both = detectable(estimate(0.02, 0.01))
    assert both == pytest.approx(((Z * 0.02) ** 2 + (by_hand * 0.01) ** 2) ** 0.5, rel=1e-5)


def test_unknown_widths_give_no_number() -> None:
    assert detectable(estimate(None, None)) is None
    assert detectable(estimate(0.0, None, seeds=1)) is None
    assert data_needed(estimate(None, None), 0.02) == data_needed(estimate(0.1, 0.1), 0.0)
    assert minimum_detectable_effect(0, 0.1) is None
    assert items_needed(0.0, 0.1) is None


def test_what_is_asked_for_is_enough_and_not_more() -> None:
    """With the items, or the seeds, that are asked for, the effect is just seen."""
    now = estimate(0.02, 0.004)
    found = data_needed(now, 0.045)
    assert found.seeds is None  # the items there are would not show it with any seeds

    def seen(items: int, seeds: int) -> float:
        error = 0.02 * (100 / items) ** 0.5
        between = 0.004 * (3 / seeds) ** 0.5
        return detectable(estimate(error, between, seeds)) or 0.0

    assert seen(found.items, 3) <= 0.045 < seen(found.items - 1, 3)
    assert data_needed(now, 0.06).seeds == 3


def test_seeds_that_differ_too_much_are_not_mended_by_items() -> None:
    varied = estimate(0.005, 0.03)
    found = data_needed(varied, 0.04)
    assert found.items is None
    freedom = found.seeds - 1
    quantiles = stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)
    between = quantiles * 0.03 * (3 / found.seeds) ** 0.5
    assert (between**2 + (Z * 0.005) ** 2) ** 0.5 <= 0.04


def test_where_neither_alone_would_do_both_are_named() -> None:
    found = data_needed(estimate(0.02, 0.02), 0.02)
    assert (found.items, found.seeds) == (None, None)
    items, seeds = found.both
    assert items > 100
    assert seeds > 3
    assert data_needed(estimate(0.5, 5.0), 0.001).both is None


def test_two_seeds_may_be_too_few_to_know_without_differing_too_much() -> None:
    # One degree of freedom: 12.706 and 1.376; known exactly, 2.802 would be all.
    two = estimate(0.005, 0.037, seeds=2)
    assert detectable(estimate(0.0, 0.037, seeds=2)) == pytest.approx(14.082581 * 0.037, rel=1e-5)
    assert data_needed(two, 0.308).items is None
    assert data_needed(two, 0.308).seeds == 3
    assert not hidden_by_seeds(two, 0.308)
    assert hidden_by_seeds(two, 0.1)  # 2.802 x .037 = .104
