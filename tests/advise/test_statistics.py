"""Statistics against scipy, statsmodels, closed and slow forms, and simulations of known truth."""

from collections.abc import Callable

import numpy as np
import pytest
import statsmodels.api as sm
from advice import paired_estimate
from scipy import stats

from rankscope.advise.statistics.estimates import (
    Comparison,
    simultaneous_estimates,
    weighted_estimate,
)
from rankscope.advise.statistics.resampling import (
    MOST_KEPT,
    NUM_DRAWS,
    resampled_means,
)
from rankscope.errors import UserError
from rankscope.records import Estimate
from simulate_studies import SCENARIOS, coverage

NAMED = {s.name: s for s in SCENARIOS}


def test_the_error_of_a_difference_by_hand() -> None:
    """Of 1,319 items 30 are right with the first model alone and 15 with the second alone."""
    first, second = np.zeros(1319), np.zeros(1319)
    first[:30], second[30:45] = 1, 1
    found = paired_estimate(first[None], second)
    assert round(100 * found.value, 3) == 1.137
    assert round(100 * found.item_error, 3) == 0.508


def scores(rng: np.random.Generator, accuracies: list[float], n: int) -> np.ndarray:
    """(models, n) right or wrong, one shared difficulty an item for four answers of five."""
    shared = rng.uniform(size=n)
    independent = rng.uniform(size=(len(accuracies), n))
    latent = np.where(rng.uniform(size=independent.shape) < 0.8, shared, independent)
    return (latent < np.array(accuracies)[:, None]).astype(float)


def test_one_seed_has_the_interval_of_a_mean() -> None:
    rows = scores(np.random.default_rng(2), [0.7, 0.6], 400)
    found = paired_estimate(rows[:1], rows[1])
    difference = rows[0] - rows[1]
    assert (found.value, found.n, found.seeds) == (pytest.approx(difference.mean()), 400, 1)
    # A percentile interval of a mean of 400 is close to the normal one.
    half = 1.96 * stats.sem(difference)
    assert found.low == pytest.approx(difference.mean() - half, abs=0.006)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.006)


def test_equal_answers_leave_open_what_items_not_drawn_would_say() -> None:
    same = np.ones((3, 400))
    found = paired_estimate(same, np.ones(400))
    # With n items and no event the exact two-sided bound on its rate is 1 - 0.025^(1/n).
    bound = 1 - 0.025 ** (1 / 400)
    assert (found.value, found.low, found.high) == pytest.approx((0, -bound, bound))
    perfect = weighted_estimate([Comparison(same, None)])
    assert (perfect.low, perfect.high) == pytest.approx((1 - bound, 1.0))
    # Scores that are not right or wrong have no such bound.
    level = paired_estimate(np.full((1, 5), -1.5), np.full(5, -2.0))
    assert (level.value, level.low, level.high) == (0.5, None, None)


@pytest.mark.parametrize("seeds", [1, 3, 7])
def test_three_times_the_same_nats_are_no_change(seeds: int) -> None:
    """The mean of three equal floats may differ from them."""
    reference = np.random.default_rng(0).normal(-1.7, 0.4, 400)
    same = np.tile(reference, (seeds, 1))
    for other in (reference, np.tile(reference, (3, 1))):
        found = paired_estimate(same, other)
        assert (found.value, found.low, found.item_error) == (0.0, None, None)
    tiny = paired_estimate(same + 1e-9, reference)
    assert tiny.value == pytest.approx(1e-9, rel=1e-3)


def test_the_other_side_has_the_other_sign() -> None:
    rows = scores(np.random.default_rng(8), [0.62, 0.6], 2000)
    found = paired_estimate(rows[:1], rows[1])
    other = paired_estimate(rows[1:], rows[0])
    assert (other.value, other.low) == pytest.approx((-found.value, -(found.high or 0)))


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: paired_estimate(np.ones((2, 5)), np.ones(4)), "same items"),
        (lambda: paired_estimate(np.ones((0, 5)), np.ones(5)), "none empty"),
        (lambda: weighted_estimate([]), "no task"),
        (
            lambda: weighted_estimate([Comparison(np.ones((s, 5)), np.ones(5)) for s in (2, 3)]),
            "other numbers of seeds",
        ),
    ],
)
def test_scores_that_do_not_belong_together_are_refused(
    refused: Callable[[], Estimate], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        refused()


@pytest.mark.parametrize(
    "name",
    [
        "usual", "seeds apart by 5 points", "2 seeds, apart by 5 points",
        "against 3 seeds of another arm", "mean of 3 tasks",
        "50 subjects, gains apart by 10 points", "nats",
    ],
)  # fmt: skip
def test_intervals_cover_the_truth(name: str) -> None:
    """93 to 97 % in the large simulation; of 200 studies, to a standard error of 0.95."""
    error = (0.95 * 0.05 / 200) ** 0.5
    assert 0.93 - error <= coverage(NAMED[name], 200).covered <= 0.97 + error


def test_intervals_of_groups_are_wider_as_students_t_is() -> None:
    rng = np.random.default_rng(5)
    groups = [Comparison(rng.normal(size=(1, n)), rng.normal(size=n)) for n in (40, 40, 9, 7, 7, 2)]
    for group, found in zip(groups, simultaneous_estimates(groups), strict=True):
        alone, n = weighted_estimate([group]), group.tuned.shape[1]
        wider = stats.t.ppf(1 - 0.025 / 6, n - 1) / stats.t.ppf(0.975, n - 1)
        assert found.high - found.value == pytest.approx(wider * (alone.high - alone.value))
        assert found.value - found.low == pytest.approx(wider * (alone.value - alone.low))
        assert (found.value, found.n) == (alone.value, n)
    (single,) = simultaneous_estimates([Comparison(np.ones((3, 1)) / 2, np.zeros(1))])
    assert (single.value, single.low) == (0.5, None)


@pytest.mark.parametrize(("n", "seeds", "apart"), [(20, 3, 0.0), (50, 3, 0.05), (50, 2, 0.02)])
def test_intervals_of_six_groups_hold_together(n: int, seeds: int, apart: float) -> None:
    """In 95 % of studies or more; as single intervals they would in three of four."""
    rng, held, single = np.random.default_rng(6), 0, 0
    for _ in range(200):
        gains = 0.1 + 0.05 * rng.standard_normal(6)
        pairs = []
        for gain in gains:
            right = 0.5 + gain + apart * rng.standard_normal(seeds)
            rows = scores(rng, [*right, 0.5], n)
            pairs.append(Comparison(rows[:-1], rows[-1]))
        groups = list(zip(gains, simultaneous_estimates(pairs), strict=True))
        assert all(e.low <= e.value <= e.high for _, e in groups)
        held += all(e.low <= gain <= e.high for gain, e in groups)
        alone = [(gain, weighted_estimate([p])) for gain, p in zip(gains, pairs, strict=True)]
        single += all(e.low <= gain <= e.high for gain, e in alone)
    assert held >= 0.95 * 200 - 4
    assert single < 0.9 * 200


@pytest.mark.parametrize("clusters", [5, 40])
def test_clustered_standard_errors(clusters: int) -> None:
    """Robust covariance of a mean with groups of unequal size; its factor C/(C-1) (n-1)/(n-1)."""
    rng = np.random.default_rng(2)
    labels = rng.integers(clusters, size=300)
    scores = rng.normal(size=300) + 0.5 * rng.normal(size=clusters)[labels]
    fitted = sm.OLS(scores, np.ones(300)).fit(
        cov_type="cluster", cov_kwds={"groups": labels, "use_correction": True}
    )
    found = paired_estimate(scores[None], np.zeros(300), labels)
    assert found.item_error == pytest.approx(float(fitted.bse[0]))


def test_seeds_alone_give_students_interval() -> None:
    """Items that all move alike leave the seeds: mean +- t of S - 1 times their standard error."""
    changes = np.array([0.1, 0.3, 0.35, 0.2])
    base = np.random.default_rng(3).normal(size=50)
    found = paired_estimate(base + changes[:, None] + 1e-7 * base, base)
    expected = stats.t.interval(0.95, 3, loc=changes.mean(), scale=stats.sem(changes))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)
    assert found.seed_error == pytest.approx(stats.sem(changes), abs=1e-6)


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


def drawn_one_by_one(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """The definition: pick as many units as there are, add up what they hold."""
    rng = np.random.default_rng([seed, 1])
    picked = rng.integers(len(sums), size=(NUM_DRAWS, len(sums)))
    return np.array([sums[p].sum() / sizes[p].sum() for p in picked])


@pytest.mark.parametrize("sizes", ["ones", "fives", "unequal"])
def test_the_product_of_counts_and_sums_is_the_bootstrap(sizes: str) -> None:
    rng = np.random.default_rng(0)
    items = {"ones": np.ones(60), "fives": np.full(60, 5.0), "unequal": rng.integers(1, 9, 60)}
    sums, sizes_ = rng.normal(size=60), items[sizes].astype(float)
    found = resampled_means(sums, sizes_, seed=3)
    assert found == pytest.approx(drawn_one_by_one(sums, sizes_, seed=3), abs=1e-6)


@pytest.mark.parametrize("kinds", [5, MOST_KEPT + 1])
def test_many_units_are_drawn_alike_whether_they_are_of_few_kinds_or_of_many(kinds: int) -> None:
    """Closed form of a bootstrapped mean of equal units: its mean and sqrt(variance / N)."""
    units = MOST_KEPT + 1
    values = np.random.default_rng(1).normal(size=kinds)[np.arange(units) % kinds]
    found = resampled_means(values, np.ones(units), seed=0)
    error = values.std() / np.sqrt(units)
    # Four standard errors of the mean, and of the standard deviation, of D normal draws.
    assert found.mean() == pytest.approx(values.mean(), abs=4 * error / np.sqrt(NUM_DRAWS))
    assert found.std() == pytest.approx(error, rel=4 / np.sqrt(2 * NUM_DRAWS))
