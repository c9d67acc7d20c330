"""What could have been seen, and what it takes to see it."""

from dataclasses import astuple

import pytest

from power import data_needed, detectable
from rankscope.records import Estimate

Z = 1.959964 + 0.841621  # quantiles .975 and .8 of the normal distribution
T = 4.302653 + 1.060660  # of Student's t with two degrees of freedom


def estimate(item_error: float | None, seed_error: float | None, seeds: int = 3) -> Estimate:
    known = {"value": 0.03, "low": None, "high": None, "n": 100, "seeds": seeds}
    return Estimate(**known, item_error=item_error, seed_error=seed_error)


def test_few_seeds_are_paid_for_by_students_quantiles() -> None:
    both = detectable(estimate(0.02, 0.01))
    assert both == pytest.approx(((Z * 0.02) ** 2 + (T * 0.01) ** 2) ** 0.5, rel=1e-5)
    assert detectable(estimate(None, None)) is None
    assert detectable(estimate(0.0, None, seeds=1)) is None


def test_what_is_asked_for_is_enough_and_not_more() -> None:
    """With the items, or the seeds, that are asked for, the effect is just seen."""
    now = estimate(0.02, 0.004)

    def seen(items: int) -> float:
        return detectable(estimate(0.02 * (100 / items) ** 0.5, 0.004)) or 0.0

    found = data_needed(now, 0.045)
    assert found.seeds is None  # the items there are would not show it with any seeds
    assert seen(found.items) <= 0.045 < seen(found.items - 1)
    assert data_needed(now, 0.06).seeds == 3
    assert data_needed(estimate(0.005, 0.03), 0.04).items is None  # seeds that differ too much
    items, seeds = data_needed(estimate(0.02, 0.02), 0.02).both
    assert (items > 100, seeds > 3) == (True, True)
    assert set(astuple(data_needed(estimate(0.5, 5.0), 0.001))) == {None}
