"""The joint posterior: closed forms, an exact reference by brute force, and laws.

Tolerances are Monte-Carlo: the posterior has 4,000 draws.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from advice import evidence, net_of
from hypothesis import assume, given, settings, strategies as st
from scipy import stats

from rankscope.advise import posterior as module
from rankscope.advise.posterior import UNIT, Changes, flat_posterior, posterior
from rankscope.advise.value import values_of_trials

MANY = 1e6  # Seeds of which the mean has no error
DRAWS = module.POSTERIOR_DRAWS
FOUR_ERRORS = 4 * 0.5 / np.sqrt(DRAWS)  # Of a probability: 0.032
LUCK = np.random.default_rng(9).standard_normal((5, DRAWS))


def drawn(changes: Changes) -> np.ndarray:
    return posterior(changes).draws


def widths(draws: np.ndarray) -> np.ndarray:
    """Of the 95 % intervals, (A,)."""
    return np.diff(np.quantile(draws, (0.025, 0.975), axis=0), axis=0)[0]


@pytest.mark.parametrize("mean", [-0.01, 0.0, 0.02, 0.3])
def test_one_arm_has_the_flat_prior(mean: float) -> None:
    """N(mean, 0.02^2); losses against max(0, U) are those of the normal distribution cut at 0."""
    found, z = net_of(evidence([mean], seeds=MANY, squares=0.0, item=0.02)), mean / 0.02
    error = 0.02 / np.sqrt(DRAWS)
    assert found.draws.mean() == pytest.approx(mean, abs=4 * error)
    assert widths(found.draws) == pytest.approx([0.0784], abs=20 * error)
    within = stats.norm.cdf([1 - z, 1 + z])  # The base loses at most 0.02; the arm does
    assert found.p_within_margin == pytest.approx(within, abs=FOUR_ERRORS)
    assert found.p_best == pytest.approx(stats.norm.cdf([-z, z]), abs=FOUR_ERRORS)
    lost = [0.02 * (stats.norm.pdf(z) + s * z * stats.norm.cdf(s * z)) for s in (1, -1)]
    assert found.regret == pytest.approx(lost, abs=4 * error)


def test_an_arm_without_anything_random_is_as_doubtful_as_its_items() -> None:
    one = replace(evidence([0.02], seeds=1, squares=0.0, item=0.02), varies=np.zeros(1))
    for found in (posterior(one), flat_posterior(one, LUCK[:1])):
        assert widths(found.draws) == pytest.approx([0.0784], rel=0.08)
    two = evidence([0.02, 0.0], seeds=1, squares=0.0, item=0.004)
    certain = net_of(replace(two, varies=np.array([1.0, 0.0])))
    assert values_of_trials(certain)[1] < 1e-12 < values_of_trials(net_of(two))[1]
    assert certain.draws[:, 1].std() < 0.7 * drawn(two)[:, 1].std()


def test_prior_covariances_of_two_arms_by_hand() -> None:
    two = evidence([0.0, 0.0])
    other = replace(two, kinds=["lora", "dora"])
    rows = replace(other, axes=two.axes + np.array([[0, 0, 0], [0, 3, 0]]))
    # Two octaves of rank and as much of alpha, 0.45 powers of ten of a rate, are
    # ((2 / 3)^2 + (0.452 / 0.2)^2)^0.5 units of distance, smooth over 1.5.
    alike = np.exp(-(0.4444 + 5.0970) / 1.5**2 / 2)
    for changes, roughness, growth, variance, shared in (
        (other, 0.0, 0.0, 3, 1),  # The level alone
        (two, 0.5, 0.0, 3.25, 1 + 1 + alike),
        (rows, 0.0, 2.0, 7, 1 + 4 * np.exp(-1 / 2)),  # 2^10 and 2^13 rows
    ):
        scales = np.array([[1.0, 1.0, 1.5, roughness, 1.0, growth]])
        (kernel,) = module._kernels(changes, scales) / UNIT**2
        assert kernel == pytest.approx(np.array([[variance, shared], [shared, variance]]), abs=1e-4)


def test_errors_that_arms_share_do_not_hide_which_one_is_better() -> None:
    """Each is known to 5 points, their difference of 3 to a third of one."""
    draws = drawn(evidence([0.05, 0.08], seeds=MANY, squares=0.0, item=0.0025, shared=0.05))
    assert (draws[:, 1] > 0).mean() < 0.97
    assert (draws[:, 1] > draws[:, 0]).mean() > 0.999


def test_arms_at_one_rate_times_alpha_tell_of_each_other() -> None:
    """Three ranks, alphas and rates, one seed each: a quarter of the best rate, at equal rate x
    alpha^0.75, gains 9 points less, half of it 2. Differences are known to 2 points, all arms
    together to 12. Nine arms speak for each of the rates."""
    grid = list(product((8, 32, 128), (16, 64, 256), (-2, -1, 0)))
    means = np.array([0.99 + (0, -0.02, -0.09)[-place] for _, _, place in grid])
    means += np.random.default_rng(0).normal(0, 0.01, len(grid))
    found = evidence(means, seeds=1, squares=0.0, item=0.014, shared=0.12, ranks=[8] * 27)
    rates = [-1.5 + place * np.log10(2) for _, _, place in grid]
    axes = np.array([[np.log2(r), 10, rate] for (r, _, _), rate in zip(grid, rates, strict=True)])
    p = net_of(replace(found, axes=axes), 0.05).p_within_margin[1:]
    lowest = np.array([place == -2 for _, _, place in grid])
    assert p[lowest].max() < 0.05
    assert p[~lowest].min() > 0.8


@pytest.mark.parametrize("spread", [0.01, 0.04])
def test_arms_share_one_spread_between_their_seeds(spread: float) -> None:
    """Ten arms of 20 seeds show it. The variance of an eleventh is drawn around theirs by an
    inverse chi-squared of 4, whose mean is twice as much."""
    seeds = np.array([20.0] * 10 + [1.0])
    means = np.append(2 * np.random.default_rng(0).normal(size=10), 0.0)
    squares, kinds = (seeds - 1) * spread**2, list(range(11))
    eleven = evidence(means, seeds=seeds, squares=squares, item=1e-4, kinds=kinds, ranks=[4] * 11)
    assert widths(drawn(eleven))[-1] / 2 == pytest.approx(1.96 * 2**0.5 * spread, rel=0.12)


def test_large_gains_are_not_the_luck_of_single_seeds() -> None:
    """Three ranks at three rates, a seed each: about 43 points at the middle rate, 15 beside it."""
    means = np.array([0.12, 0.42, 0.13, 0.185, 0.45, 0.18, 0.125, 0.415, 0.135])
    nine = evidence(
        means, seeds=1, squares=0.0, item=0.03, shared=0.025, ranks=np.repeat([2, 8, 32], 3)
    )
    nine.axes[:, 2] += np.tile([-1, 0, 1], 3)
    middle = drawn(nine)[:, [1, 4, 7]].mean()
    assert middle == pytest.approx(means[[1, 4, 7]].mean(), abs=0.08)


def test_a_seed_that_collapsed_is_one_of_the_outcomes_to_expect() -> None:
    """Seeds of +30 and +1 points: 15.5 is expected of a further one, and hardly known. Arms of +30
    and +30 are as well known beside it as beside one of +15.5 and +15.5."""
    squares = np.array([2 * 0.145**2, 0.0, 0.0, 0.0])
    four = evidence([0.155, 0.3, 0.3, 0.3], seeds=2, squares=squares)
    draws, agreed = drawn(four), drawn(replace(four, squares=0 * squares))
    assert draws[:, 0].mean() == pytest.approx(0.155, abs=0.03)
    assert widths(draws)[0] > 0.12
    assert (widths(draws)[1:] < 1.25 * widths(agreed)[1:]).all()


@pytest.mark.parametrize("first", [0.2, 0.1])
@pytest.mark.parametrize("shared", [0.0, 0.1])
def test_a_broken_arm_tells_nothing_of_the_others(shared: float, first: float) -> None:
    """However far it lies below them, and even if they are without it far enough apart."""
    means = [first, 0.3, 0.35]
    alone, near, far = (
        drawn(evidence([*means, *lowest], seeds=2, item=0.02, shared=shared))
        for lowest in ([], [first - 0.4], [first - 40])
    )
    assert (far[:, :3] == near[:, :3]).all()
    assert far[:, 3] == pytest.approx(near[:, 3] - 39.6)
    error = 4 * 2**0.5 * alone.std(axis=0).max() / DRAWS**0.5
    assert near[:, :3].mean(axis=0) == pytest.approx(alone.mean(axis=0), abs=error)
    assert widths(near)[:3] == pytest.approx(widths(alone), rel=0.1)


def by_brute_force(of: Changes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every choice of scales: its weight (K,), and the mean (K, A) and covariance (K, A, A) of the
    changes, which are normal for one choice; with SciPy's distributions and plain inverses."""
    size, typical = 2 * np.abs(of.means).max() / UNIT, (of.typical_spread * UNIT) ** 2
    freedom = module.SPREAD_FREEDOM / 2
    options = [module._up_to(s, size) for s in (module.LEVELS, module.HEIGHTS, module.SEED_SPREADS)]
    scales = np.array(
        [*product(options[0][-4:], options[1], module.LENGTHS, module.ROUGHNESS, options[2], [0.0])]
    )
    kernels, common = module._kernels(of, scales), np.square(scales[:, 4:5] * UNIT)
    mean_of_own = (module.OWN_FREEDOM + of.seeds - 1) / (module.OWN_FREEDOM + of.seeds - 3)
    own = of.varies * mean_of_own * common / of.seeds + of.extra
    seen = kernels + of.item_covariance + own[:, :, None] * np.eye(len(of.means))
    taken = kernels @ np.linalg.inv(seen)
    off = of.means - of.prior_mean * UNIT
    logs = -(np.linalg.slogdet(seen)[1] + np.linalg.solve(seen, off[:, None])[..., 0] @ off) / 2
    logs -= np.log(1 + scales[:, 1] ** 2)
    # Scales are a logarithmic grid, so the density of a variance is times itself.
    logs += stats.invgamma(freedom, scale=freedom * typical).logpdf(common[:, 0]) + np.log(
        common[:, 0]
    )
    if (of.seeds > 1).all():
        ratio = (of.seeds - 1) * (common + of.answer_noise)
        found = stats.f(of.seeds - 1, module.OWN_FREEDOM).logpdf(of.squares / ratio)
        logs += (found - np.log(ratio)).sum(axis=1)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum(), of.prior_mean * UNIT + taken @ off, kernels - taken @ kernels


@pytest.mark.parametrize(
    ("means", "seeds", "noise", "changed"),
    [
        ([0.05, 0.06, 0.055], 3, 1e-4, {}),
        ([0.02, 0.06, 0.08], 1, 0.0, {}),
        ([-0.01, 0.01, 0.0], 5, 1e-4, {"prior_mean": -0.5}),
        ([0.5, 0.5, 0.36], 1, 0.0, {}),  # One seed that is off, or another rank
        ([0.5, 0.5, 0.4], 1, 0.0, {"typical_spread": 3.0}),
        ([0.1, 0.2, 0.2], 1, 0.0, {"varies": np.array([0, 1, 1]), "extra": np.array([0, 0.01, 0])}),
        ([5.0, 5.1, 5.2], 1, 0.0, {}),
    ],
)  # fmt: skip
def test_the_posterior_is_that_by_brute_force(means, seeds, noise, changed) -> None:
    """Seeds are no further apart than by the noise of their answers: no interval is widened."""
    of = evidence(means, seeds=seeds, squares=(seeds - 1) * noise, item=0.012, shared=0.008)
    of = replace(of, answer_noise=np.full(3, noise), **changed)
    weights, expected, covariances = by_brute_force(of)
    draws, mean = drawn(of), weights @ expected
    second = np.einsum("k,kab->ab", weights, covariances + expected[:, :, None] * expected[:, None])
    covariance = second - np.outer(mean, mean)
    error = np.sqrt(np.diag(covariance))
    assert draws.mean(axis=0) == pytest.approx(mean, abs=4 * error.max() / np.sqrt(DRAWS))
    found = np.cov(draws.T) / np.outer(error, error)
    assert found == pytest.approx(covariance / np.outer(error, error), abs=0.15)
    for contrast in ([1, 0, 0], [0, 0, 1], [-1, 1, 0], [0, -1, 1]):
        deviations = np.sqrt(np.einsum("a,kab,b->k", contrast, covariances, contrast))
        p = weights @ stats.norm.cdf(expected @ contrast / deviations)
        assert (draws @ contrast > 0).mean() == pytest.approx(p, abs=FOUR_ERRORS)


ARMS = st.integers(2, 5).flatmap(
    lambda number: st.tuples(
        st.lists(st.floats(-0.3, 0.3), min_size=number, max_size=number),
        st.lists(st.integers(1, 5), min_size=number, max_size=number),
        st.lists(st.floats(0, 2e-3), min_size=number, max_size=number),
        st.floats(0.003, 0.04),
    )
)


def evidence_of(arms: tuple[list[float], list[int], list[float], float]) -> Changes:
    means, seeds, squares, item = arms
    kept = np.where(np.array(seeds) > 1, squares, 0.0)
    return evidence(means, seeds=np.array(seeds, float), squares=kept, item=item, shared=item / 2)


LAWS = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@LAWS
@given(ARMS, st.randoms(use_true_random=False))
def test_the_order_of_arms_does_not_matter(arms, random) -> None:
    of = evidence_of(arms)
    before = net_of(of)
    assert (before.draws == drawn(of)).all()  # The same evidence, the same numbers
    order = random.sample(range(len(of.means)), len(of.means))
    after, places = net_of(of.part(np.array(order))), [0, *(1 + place for place in order)]
    p = (before.draws > 0).mean(axis=0)[order]
    assert (after.draws > 0).mean(axis=0) == pytest.approx(p, abs=2 * FOUR_ERRORS)
    assert after.p_best == pytest.approx(before.p_best[places], abs=2 * FOUR_ERRORS)
    assert after.regret == pytest.approx(before.regret[places], abs=0.25 * UNIT)


@LAWS
@given(ARMS, st.sampled_from(["seed", "items", "arm"]))
def test_evidence_that_agrees_never_makes_a_shown_effect_unknown(arms, kind) -> None:
    """One more seed at its arm's mean, as many items again that say the same, or an arm between two
    others with their mean: intervals grow by Monte-Carlo error at most."""
    of = evidence_of(arms)
    assume(not module.broken_arms(of.means).any())
    if kind == "items":
        more = replace(of, item_covariance=of.item_covariance / 2)
    elif kind == "seed":
        more = replace(of, seeds=of.seeds + np.eye(len(of.means))[0])
    else:
        means, item = [*of.means, of.means[:2].mean()], arms[3]
        more = replace(
            evidence(means, item=item, shared=item / 2, ranks=[4] * len(means)),
            seeds=np.append(of.seeds, of.seeds[:2].min()),
            squares=np.append(of.squares, 0.0),
            axes=np.vstack([of.axes, of.axes[:2].mean(axis=0)]),
        )
    before, after = drawn(of), drawn(more)[:, : len(of.means)]
    assert (widths(after) <= 1.15 * widths(before)).all()
    shown = (before > 0).mean(axis=0) > 0.95
    assert ((after > 0).mean(axis=0)[shown] > 0.9).all()


def test_many_arms_are_weighed_by_some_of_them() -> None:
    """Above 60 the scales are weighed by 60 arms; all are drawn."""
    truth = np.linspace(0, 0.1, module.MOST_TRIED + 20)
    noisy = truth + np.random.default_rng(0).normal(0, 0.01, len(truth))
    of = evidence(noisy, seeds=MANY, squares=0.0, ranks=np.arange(1, len(truth) + 1))
    off = np.abs(drawn(of).mean(axis=0) - truth).mean()
    assert off < 0.7 * np.abs(of.means - truth).mean()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_have_no_posterior_but_the_flat_one(broken: float) -> None:
    of = evidence([0.1, broken, 0.0])
    with pytest.raises(FloatingPointError):
        posterior(of)
    flat = flat_posterior(replace(of, extra=np.array([0.0, np.inf, 0.0])), LUCK[:3]).draws
    assert np.isfinite(flat).all()
    assert widths(flat)[1] > 1000 * UNIT
    # By hand: items 0.01, seeds 2e-4 / 2 / 3, more than is typical.
    error = np.sqrt(0.01**2 + 1e-4 / 3)
    assert widths(flat)[0] / 2 == pytest.approx(1.96 * error, rel=0.06)
