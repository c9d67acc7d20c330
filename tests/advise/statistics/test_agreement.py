"""The same figures from statsmodels, and a closed form for seeds."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rankscope.advise.statistics.estimates import (
    Comparison,
    clustered_standard_error,
    paired_estimate,
    weighted_estimate,
)
from rankscope.advise.statistics.significance import holm


def test_holm() -> None:
    rng = np.random.default_rng(1)
    p_values = list(rng.uniform(size=24) ** 3)
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("clusters", [5, 40])
def test_clustered_standard_errors(clusters: int) -> None:
    """Robust covariance of a mean with groups of unequal size; its factor C/(C-1) (n-1)/(n-1)."""
    rng = np.random.default_rng(2)
    labels = rng.integers(clusters, size=300)
    scores = rng.normal(size=300) + 0.5 * rng.normal(size=clusters)[labels]
    fitted = sm.OLS(scores, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": labels, "use_correction": True}
    )
    assert clustered_standard_error(scores, list(labels)) == pytest.approx(float(fitted.bse[0]))


def test_seeds_alone_give_students_interval() -> None:
    """Items that all move alike leave the seeds: mean +- t of S - 1 times their standard error."""
    changes = np.array([0.1, 0.3, 0.35, 0.2])
    base = np.random.default_rng(3).normal(size=50)
    found = paired_estimate(base + changes[:, None] + 1e-7 * base, base)
    expected = stats.t.interval(0.95, 3, loc=changes.mean(), scale=stats.sem(changes))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)
    assert found.seed_error == pytest.approx(stats.sem(changes), abs=1e-6)
    # Sign flips see 50 items that all rose; seeds are what is uncertain.
    assert found.p == pytest.approx(stats.ttest_1samp(changes, 0).pvalue, abs=1e-5)


def test_shares_of_items_and_seeds_are_those_of_a_two_way_layout() -> None:
    """Expected mean squares by hand, for scores = item + seed + rest on a grid without noise."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(4, 200)) + rng.normal(size=200) + 0.3 * rng.normal(size=(4, 1))
    s, n = rows.shape
    grand = rows.mean()
    between_items = s * ((rows.mean(axis=0) - grand) ** 2).sum() / (n - 1)
    between_seeds = n * ((rows.mean(axis=1) - grand) ** 2).sum() / (s - 1)
    rest = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + grand
    left = (rest**2).sum() / ((s - 1) * (n - 1))
    found = paired_estimate(rows, np.zeros(n))
    assert found.item_error == pytest.approx((between_items / (s * n)) ** 0.5)
    assert found.seed_error == pytest.approx((max(0, between_seeds - left) / (s * n)) ** 0.5)
    assert found.standard_error == pytest.approx(
        ((between_items + between_seeds - left) / (s * n)) ** 0.5
    )


def test_a_sum_over_tasks_adds_item_variances_and_joins_seeds() -> None:
    rng = np.random.default_rng(5)
    seeds = 0.5 * rng.normal(size=(3, 1))
    pairs = [
        Comparison(seeds + rng.normal(size=n) + 0.1 * rng.normal(size=(3, n)), rng.normal(size=n))
        for n in (60, 90)
    ]
    together = weighted_estimate(pairs, (1.0, -1.0))
    separate = [weighted_estimate([p]) for p in pairs]
    assert together.item_error**2 == pytest.approx(sum((a.item_error or 0) ** 2 for a in separate))
    # What the two tasks share of a seed cancels in their difference.
    assert together.seed_error < 0.2 * (separate[0].seed_error or 0)
    assert together.value == pytest.approx(separate[0].value - separate[1].value)
