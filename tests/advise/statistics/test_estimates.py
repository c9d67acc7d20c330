"""Statistics against scipy, closed forms, hand numbers and small simulations of known truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from rankscope.advise.statistics.estimates import (
    Comparison,
    _p_of_interval,
    _Share,
    clustered_standard_error,
    non_inferior,
    paired_estimate,
    weighted_estimate,
)
from rankscope.advise.statistics.power import items_needed, minimum_detectable_effect
from rankscope.advise.statistics.significance import mcnemar_exact, sign_flip
from rankscope.errors import UserError
from rankscope.records import Estimate


def test_mcnemar_of_the_founding_notes() -> None:
    # docs/science.md, numbers that must come out: b = 30, c = 15, n = 1319.
    first, second = np.zeros(1319), np.zeros(1319)
    first[:30], second[30:45] = 1, 1
    found = paired_estimate(first[None], second)
    assert round(found.p, 4) == 0.0357
    assert round(100 * found.value, 3) == 1.137
    assert round(100 * (clustered_standard_error(first - second) or 0), 3) == 0.508


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (9, 3), (50, 50), (200, 120)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected)


def test_a_standard_error_takes_two_items_and_two_clusters() -> None:
    assert clustered_standard_error(np.ones(1)) is None
    assert clustered_standard_error(np.array([0.0, 1.0]), ["one"] * 2) is None


@pytest.mark.parametrize(
    ("n", "discordance", "points"), [(1319, 0.10, 2.4), (14042, 0.05, 0.5), (200, 0.10, 6.3)]
)
def test_what_could_have_been_seen(n: int, discordance: float, points: float) -> None:
    # docs/science.md, section 5: GSM8K, MMLU and a 200-item subset.
    effect = minimum_detectable_effect(n, discordance)
    assert round(100 * effect, 1) == points
    assert items_needed(effect, discordance) in (n, n + 1)


def test_detectable_effect_is_detected_four_times_out_of_five() -> None:
    rng = np.random.default_rng(1)
    n, discordance = 1000, 0.10
    effect = minimum_detectable_effect(n, discordance) or 0.0
    gains = (discordance + effect) / 2
    draws = rng.multinomial(n, [gains, discordance - gains, 1 - discordance], size=1000)
    found = np.mean([mcnemar_exact(int(b), int(c)) < 0.05 for b, c, _ in draws])
    # The exact test is a little conservative against the formula's normal approximation.
    assert 0.72 < found < 0.84


def scores(rng: np.random.Generator, accuracies: list[float], n: int) -> np.ndarray:
    """(models, n) right or wrong, one shared difficulty an item for four answers of five."""
    shared = rng.uniform(size=n)
    independent = rng.uniform(size=(len(accuracies), n))
    latent = np.where(rng.uniform(size=independent.shape) < 0.8, shared, independent)
    return (latent < np.array(accuracies)[:, None]).astype(float)


def test_one_seed_is_the_mcnemar_test_with_its_interval() -> None:
    rows = scores(np.random.default_rng(2), [0.7, 0.6], 400)
    found = paired_estimate(rows[:1], rows[1])
    difference = rows[0] - rows[1]
    p = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
    assert (found.value, found.p) == (pytest.approx(difference.mean()), p)
    assert (found.n, found.seeds) == (400, 1)
    # A percentile interval of a mean of 400 is close to the normal one.
    half = 1.96 * stats.sem(difference)
    assert found.low == pytest.approx(difference.mean() - half, abs=0.006)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.006)


def test_sign_flips_of_few_units_are_all_counted() -> None:
    # Of the eight sums +-3 +-2 +-1 only 6 and -6 are as far from zero as 6; four reach 4.
    assert sign_flip(np.array([3.0, 2.0, 1.0, 0.0])) == 0.25
    assert sign_flip(np.array([3.0, 2.0, -1.0])) == 0.5
    assert sign_flip(np.zeros(4)) == 1.0
    # Units of one size make it the sign test, however their thirds were rounded.
    thirds = np.array([0.1 + 0.2] * 5 + [0.3] * 6 + [-0.3])
    assert sign_flip(thirds) == pytest.approx(mcnemar_exact(11, 1))


def test_losses_in_one_seed_do_not_outvote_gains_in_all() -> None:
    """45 items gained in three seeds of three, 60 lost in one of three: +12.5 points."""
    base = np.zeros(200)
    base[:60] = 1
    tuned = np.tile(base, (3, 1))
    for item in range(60):
        tuned[item % 3, item] = 0
    tuned[:, 60:105] = 1
    found = paired_estimate(tuned, base)
    assert found.value == pytest.approx((45 - 20) / 200)
    assert found.p < 0.01
    both = weighted_estimate([Comparison(tuned, base)] * 2)
    assert both.p < 0.01


@pytest.mark.parametrize("n", [40, 200])
def test_p_and_interval_agree(n: int) -> None:
    """Both are of the mean: p < .05 where the interval is clear of zero, and never elsewhere."""
    rng = np.random.default_rng(11)
    agreed = found_of_them = 0
    for i in range(100):
        gain = (0, 0.05, 0.1, 0.2)[i % 4]
        rows = scores(rng, [0.5 + gain + 0.01 * rng.standard_normal() for _ in range(3)] + [0.5], n)
        one = paired_estimate(rows[:3], rows[3])
        clear = one.low > 0 or one.high < 0
        assert clear or one.p >= 0.05
        agreed += clear == (one.p < 0.05)
        found_of_them += clear
    assert agreed >= 90
    assert 10 < found_of_them < 90


def test_a_difference_of_rounding_alone_has_p_1() -> None:
    """scipy's median of Student's t is not quite 0, which is more than such a difference."""
    shares = (_Share(1.0, 399.0), _Share(1.0, 2.0))
    for value in (1e-18, -1e-17, 1e-15):
        assert _p_of_interval(shares, value) == pytest.approx(1)


def test_power_over_seeds_is_about_that_of_the_t_test_on_item_means() -> None:
    """Seeds alike, so the t test on item means is right; seed noise of answers is split."""
    rng = np.random.default_rng(12)
    flips = t_test = 0
    for _ in range(100):
        rows = scores(rng, [0.6, 0.6, 0.6, 0.5], 150)
        p = paired_estimate(rows[:3], rows[3]).p
        flips += p < 0.05
        t_test += stats.ttest_1samp(rows[:3].mean(axis=0) - rows[3], 0).pvalue < 0.05
    # The bootstrap also allows for seeds that differ, hence a little less.
    assert flips >= 0.75 * t_test
    assert t_test > 60


def test_one_task_of_few_items_does_not_make_the_mean_certain() -> None:
    """Five items that all improved: 2 x .5^5 exactly, in the mean over tasks as by themselves."""
    unchanged = Comparison(np.ones((2, 50)), np.ones(50))
    found = weighted_estimate([Comparison(np.ones((2, 5)), np.zeros(5)), unchanged])
    assert found.p == 0.0625


def test_item_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    tuned, base = rng.normal(0.3, 1, size=(1, 200)), rng.normal(0, 1, size=200)
    found = paired_estimate(tuned, base)
    reference = stats.bootstrap(
        ((tuned - base)[0],), np.mean, n_resamples=5000, method="percentile", rng=rng
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.02)
    # Sign flips of 200 normal differences are close to the t test.
    assert found.p == pytest.approx(stats.ttest_1samp((tuned - base)[0], 0).pvalue, abs=0.01)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    by_subject = rng.integers(0, 2, size=20).astype(float)
    tuned = np.repeat(by_subject, 10)[None, :]
    base = np.zeros(200)
    subjects = [f"subject {i // 10}" for i in range(200)]
    flat, clustered = paired_estimate(tuned, base), paired_estimate(tuned, base, subjects)
    assert flat.value == clustered.value
    ratio = ((clustered.high or 0) - (clustered.low or 0)) / ((flat.high or 0) - (flat.low or 0))
    # Ten copies an item: the standard error grows by sqrt(10).
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_one_item_has_an_unknown_width_and_no_test() -> None:
    found = paired_estimate(np.array([[1.0]]), np.array([0.0]))
    assert (found.value, found.low, found.high, found.p) == (1.0, None, None, None)


def test_equal_answers_leave_open_what_items_not_drawn_would_say() -> None:
    same = np.ones((3, 400))
    found = paired_estimate(same, np.ones(400))
    # With n items and no event the exact two-sided bound on its rate is 1 - .025^(1/n).
    bound = 1 - 0.025 ** (1 / 400)
    assert (found.value, found.low, found.high) == pytest.approx((0, -bound, bound))
    assert found.p == 1.0
    perfect = weighted_estimate([Comparison(same, None)], tested=False)
    assert (perfect.low, perfect.high) == pytest.approx((1 - bound, 1.0))
    # Three items that all improved are not proof: sign flips say 2 x .5^3.
    assert paired_estimate(np.ones((2, 3)), np.zeros(3)).p == 0.25
    # Scores that are not right or wrong have no such bound.
    level = paired_estimate(np.full((1, 5), -1.5), np.full(5, -2.0))
    assert (level.value, level.low, level.high) == (0.5, None, None)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 7])
def test_three_times_the_same_nats_are_no_change(seeds: int) -> None:
    """The mean of three equal floats may differ from them: such differences once had p = .12."""
    reference = np.random.default_rng(0).normal(-1.7, 0.4, 400)
    same = np.tile(reference, (seeds, 1))
    for other in (reference, np.tile(reference, (3, 1))):
        found = paired_estimate(same, other)
        assert (found.value, found.p) == (0.0, 1.0)
        assert (found.low, found.item_error) == (None, None)
    tiny = paired_estimate(same + 1e-9, reference)
    assert tiny.value == pytest.approx(1e-9, rel=1e-3)


def test_the_mean_over_tasks_weighs_tasks_not_items() -> None:
    few = Comparison(np.zeros((2, 10)), np.ones(10))
    many = Comparison(np.ones((2, 90)), np.ones(90))
    found = weighted_estimate([few, many])
    assert (found.value, found.n, found.seeds) == (-0.5, 100, 2)


def test_the_other_side_and_the_margin() -> None:
    rows = scores(np.random.default_rng(8), [0.62, 0.6], 2000)
    found = paired_estimate(rows[:1], rows[1])
    other = paired_estimate(rows[1:], rows[0])
    assert (other.value, other.low, other.p) == pytest.approx(
        (-found.value, -(found.high or 0), found.p)
    )
    assert non_inferior(found, -found.low + 1e-6)
    assert not non_inferior(found, -found.low - 1e-6)
    assert not non_inferior(paired_estimate(np.ones((1, 1)), np.ones(1)), 0.5)


def test_equal_arguments_give_equal_results_and_trained_references_count_their_seeds() -> None:
    rows = scores(np.random.default_rng(9), [0.7, 0.7, 0.7, 0.6, 0.6], 100)
    one = paired_estimate(rows[:3], rows[3:], seed=5)
    assert one == paired_estimate(rows[:3], rows[3:], seed=5)
    assert one.seeds == 2
    assert one.value == pytest.approx(rows[:3].mean() - rows[3:].mean())


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: paired_estimate(np.ones((2, 5)), np.ones(4)), "same items"),
        (lambda: paired_estimate(np.ones((0, 5)), np.ones(5)), "none empty"),
        (lambda: paired_estimate(np.ones((1, 200)), np.ones(200), ["a", "b"]), "2 labels for 200"),
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
