"""The joint posterior: closed forms, an exact reference by brute force, and laws.

Tolerances are Monte-Carlo: the posterior has 4,000 draws, the reference 20,000.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from advice import evidence
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankscope.advise import posterior as module
from rankscope.advise.posterior import (
    POSTERIOR_DRAWS,
    NetGains,
    Posterior,
    flat_posterior,
    likeliest_posteriors,
    posterior,
)
from rankscope.advise.value import values_of_trials

MARGIN = 0.02
MANY = 1e6  # Seeds of which the mean has no error
FOUR_ERRORS = 4 * 0.5 / np.sqrt(POSTERIOR_DRAWS)  # Of a probability: .032


def rows(found: Posterior) -> np.ndarray:
    """Every probability that is printed, the base's first."""
    return np.concatenate([found.p_within_margin, found.p_best, better(found)])


def better(found: Posterior) -> np.ndarray:
    """Probability of being better than the base, (A,)."""
    return (found.draws > 0).mean(axis=0)


def means_of(found: Posterior) -> np.ndarray:
    return found.draws.mean(axis=0)


def ends_of(found: Posterior) -> np.ndarray:
    """95 % intervals, (2, A)."""
    return np.quantile(found.draws, (0.025, 0.975), axis=0)


@pytest.mark.parametrize("mean", [-0.01, 0.0, 0.02, 0.3])
def test_one_arm_has_the_flat_prior(mean: float) -> None:
    """N(mean, .02^2); losses against max(0, U) are those of the normal distribution cut at 0."""
    found, z = posterior(evidence([mean], seeds=MANY, squares=0.0, item=0.02), MARGIN), mean / 0.02
    error = 0.02 / np.sqrt(POSTERIOR_DRAWS)
    assert means_of(found) == pytest.approx([mean], abs=4 * error)
    assert ends_of(found)[:, 0] == pytest.approx([mean - 0.0392, mean + 0.0392], abs=12 * error)
    assert better(found) == pytest.approx([stats.norm.cdf(z)], abs=FOUR_ERRORS)
    within = stats.norm.cdf([1 - z, 1 + z])  # The base loses at most .02; the arm does
    assert found.p_within_margin == pytest.approx(within, abs=FOUR_ERRORS)
    assert found.p_best == pytest.approx(stats.norm.cdf([-z, z]), abs=FOUR_ERRORS)
    lost = [0.02 * (stats.norm.pdf(z) + s * z * stats.norm.cdf(s * z)) for s in (1, -1)]
    assert found.regret == pytest.approx(lost, abs=4 * error)


def test_an_arm_without_anything_random_is_as_doubtful_as_its_items() -> None:
    one = replace(evidence([0.02], seeds=1, squares=0.0, item=0.02), varies=np.zeros(1))
    for found in (posterior(one, MARGIN), flat_posterior(one, MARGIN)):
        error = 0.02 / np.sqrt(POSTERIOR_DRAWS)
        ends = np.quantile(found.draws, (0.025, 0.975))
        assert ends == pytest.approx([0.02 - 0.0392, 0.02 + 0.0392], abs=12 * error)
    two = evidence([0.02, 0.0], seeds=1, squares=0.0, item=0.004)
    certain = replace(two, varies=np.array([1.0, 0.0]))
    nothing, something = (values_of_trials(e, MARGIN)[1] for e in (certain, two))
    assert abs(nothing) < 1e-12 < something
    widths = [posterior(e, MARGIN).draws.std(axis=0) for e in (two, certain)]
    assert widths[1][1] < 0.7 * widths[0][1]


def test_two_arms_by_hand() -> None:
    """Kernel (1 + 2 on the diagonal, level alone beside it), noise 1, prior mean -.5: that of the
    posterior is -.5 + K (K + 1)^-1 (2, .5)."""
    two = evidence([1.5, 0.0], seeds=MANY, squares=0.0, item=1.0, kinds=["lora", "dora"])
    (found,) = likeliest_posteriors(two, 1.0, 1, np.array([[1.0, 1.0, 1.5, 0.0, 1.0, 0.0]]))
    assert found.kernel == pytest.approx(np.array([[3, 1], [1, 3]]))
    assert found.mean == pytest.approx([1.0, 0.0], abs=1e-5)
    # Of one kind, two octaves and as much of alpha apart, which is .45 powers of ten of a rate:
    # ((2 / 3)^2 + (.452 / .2)^2)^.5 units of distance, smooth over 1.5.
    alike = replace(two, kinds=["lora"] * 2)
    (found,) = likeliest_posteriors(alike, 1.0, 1, np.array([[1.0, 1.0, 1.5, 0.5, 1.0, 0.0]]))
    shared = 1 + 1 + np.exp(-(0.4444 + 5.0970) / 1.5**2 / 2)
    assert found.kernel == pytest.approx(np.array([[3.25, shared], [shared, 3.25]]), abs=1e-4)
    # Of two kinds, of 2^10 and 2^13 rows: what grows with the rows, 2^2, is shared in part.
    axes = two.axes + np.array([[0, 0, 0], [0, 3, 0]])
    scales = np.array([[1.0, 1.0, 1.5, 0.0, 1.0, 2.0]])
    (found,) = likeliest_posteriors(replace(two, axes=axes), 1.0, 1, scales)
    shared = 1 + 4 * np.exp(-1 / 2)
    assert found.kernel == pytest.approx(np.array([[7, shared], [shared, 7]]))


def test_errors_that_arms_share_do_not_hide_which_one_is_better() -> None:
    """Each is known to 5 points, their difference of 3 to a third of one."""
    found = posterior(
        evidence([0.05, 0.08], seeds=MANY, squares=0.0, item=0.0025, shared=0.05), MARGIN
    )
    assert better(found)[1] < 0.97
    assert (found.draws[:, 1] > found.draws[:, 0]).mean() > 0.999


def test_arms_at_one_rate_times_alpha_tell_of_each_other() -> None:
    """Three ranks, three alphas, three rates, one seed each: a quarter of the best rate, at equal
    rate x alpha^.75, gains 9 % of the largest gain less, half of it 2 %; differences are known to
    2 %, all arms together to 12. Nine arms speak for each of the rates."""
    grid = list(product((8, 32, 128), (16, 64, 256), (-2, -1, 0)))
    means = np.array([0.99 + (0, -0.02, -0.09)[-place] for _, _, place in grid])
    means += np.random.default_rng(0).normal(0, 0.01, len(grid))
    found = evidence(means, seeds=1, squares=0.0, item=0.014, shared=0.12, ranks=[8] * 27)
    rates = [-1.5 + place * np.log10(2) for _, _, place in grid]
    axes = np.array([[np.log2(r), 10, rate] for (r, _, _), rate in zip(grid, rates, strict=True)])
    p = posterior(replace(found, axes=axes), 0.05).p_within_margin[1:]
    lowest = np.array([place == -2 for _, _, place in grid])
    assert p[lowest].max() < 0.05
    assert p[~lowest].min() > 0.8


def test_arms_pool_the_variance_between_their_seeds() -> None:
    """Ten arms of 20 seeds show a spread of 1 point, so one seed of an eleventh is known to t of
    five degrees (its own variance is drawn around theirs): 2.571 points."""
    number, spread = 11, 0.01
    seeds = np.array([20.0] * 10 + [1.0])
    one = evidence(
        np.zeros(number),
        seeds=seeds,
        squares=(seeds - 1) * spread**2,
        item=1e-4,
        kinds=list(range(number)),
        ranks=[4] * number,
    )
    far = replace(one, means=np.append(2 * np.random.default_rng(0).normal(size=10), 0.0))
    low, high = ends_of(posterior(far, MARGIN))[:, -1]
    assert (high - low) / 2 == pytest.approx(2.571 * spread, rel=0.12)
    wild = replace(far, squares=far.squares * 16)
    low, high = ends_of(posterior(wild, MARGIN))[:, -1]
    assert (high - low) / 2 == pytest.approx(2.571 * 4 * spread, rel=0.12)


def by_brute_force(found: NetGains, each: int = 150) -> Posterior:
    """Every choice of scales, ``each`` with draws of the arms' variances between seeds given the
    squares, weighed by what they make of the means; no modes, no approximation.

    Without noise of answers the variances are a scaled inverse chi-squared of 4 + S - 1 degrees.
    """
    rng, number = np.random.default_rng(1), len(found.means)
    largest = max(found.means.max(), np.median(np.abs(found.means)))
    fitted = np.maximum(found.means, -max(16 * MARGIN, 2 * largest)) + MARGIN / 2
    expected, found = found.means - fitted, replace(found, means=fitted)
    size = 2 * np.abs(found.means).max() / MARGIN
    options = [module._up_to(module.LEVELS, size)[-4:], module._up_to(module.HEIGHTS, size)]
    scales = np.array(list(product(*options, module.LENGTHS, module.ROUGHNESS, [1.0], [0.0])))
    kernels = np.repeat(module._kernels(found, MARGIN, scales), each, axis=0)
    logs, covariances = [], []
    for spread in module._up_to(module.SEED_SPREADS, size):
        scale = (spread * MARGIN) ** 2
        freedom = module.OWN_FREEDOM + found.seeds - 1
        own = (module.OWN_FREEDOM * scale + found.squares) / rng.chisquare(
            freedom, (len(kernels), number)
        )
        covariance = (
            kernels + found.item_covariance + (own / found.seeds)[..., None] * np.eye(number)
        )
        _, determinant = np.linalg.slogdet(covariance)
        off = np.linalg.solve(covariance, np.tile(found.means[:, None], (len(own), 1, 1)))[..., 0]
        # Of the spread: inverse chi-squared of 2 around half a margin; of the squares: Fisher's F.
        prior = np.log(2 * (MARGIN / 2) ** 2 / scale) - (MARGIN / 2) ** 2 / scale
        squares = (found.seeds - 1) * np.log(scale) + freedom * np.log1p(
            found.squares / scale / module.OWN_FREEDOM
        )
        logs.append(prior - squares.sum() / 2 - (off @ found.means + determinant) / 2)
        covariances.append(covariance)
    weights = np.exp(np.concatenate(logs) - np.max(logs))
    picked = np.sort(rng.choice(len(weights), 20_000, p=weights / weights.sum()))
    kernel = kernels[picked % len(kernels)]
    taken = kernel @ np.linalg.inv(np.concatenate(covariances)[picked])
    rest = kernel - taken @ kernel
    roots = np.linalg.cholesky((rest + rest.transpose(0, 2, 1)) / 2 + 1e-12 * np.eye(number))
    normal = roots @ rng.standard_normal((len(picked), number, 1))
    return Posterior(expected + (taken @ found.means) + normal[..., 0], MARGIN)


@pytest.mark.parametrize(
    ("means", "seeds", "squares"),
    [
        ([0.05, 0.06, 0.055], 3, 2e-4),
        ([0.02, 0.06, 0.08], 1, 0.0),
        ([0.0, 0.06, 0.01], [2, 3, 2], [1e-3, 2e-4, 5e-3]),
        ([-0.01, 0.01, 0.0], 5, 1e-3),
        ([0.5, 0.5, 0.3], 1, 0.0),  # one seed that is off, or another rank
        ([0.5, 0.5, -1.0], 1, 0.0),  # an arm that collapsed
        ([0.5, 0.5, -1.0], 3, 2e-4),
        ([5.0, 5.1, 5.2], 1, 0.0),  # gains of 250 margins
    ],
)
def test_the_mixture_is_the_posterior_by_brute_force(
    means: list[float], seeds: float | list[float], squares: float | list[float]
) -> None:
    """To .035, five Monte-Carlo errors; the variances between seeds are taken at their modes."""
    found = evidence(means, seeds=seeds, squares=squares, item=0.012, shared=0.008)
    one, other = posterior(found, MARGIN), by_brute_force(found)
    assert rows(one) == pytest.approx(rows(other), abs=0.035)
    assert means_of(one) == pytest.approx(means_of(other), abs=0.1 * MARGIN + 0.02 * np.ptp(means))
    assert one.regret == pytest.approx(other.regret, abs=0.1 * MARGIN + 0.02 * np.ptp(means))


def test_how_far_a_broken_model_is_below_the_base_tells_nothing_of_the_others() -> None:
    means = np.array([0.1, 0.3, 0.35, -0.8])
    near, far = (
        posterior(evidence([*means[:3], low], seeds=1, squares=0.0, item=0.02), MARGIN)
        for low in (-0.8, -40.0)
    )
    assert far.draws[:, :3] == pytest.approx(near.draws[:, :3], abs=1e-12)
    assert far.draws[:, 3] == pytest.approx(near.draws[:, 3] - 39.2)
    on_same_items = evidence([*means[:3], -40.0], seeds=1, squares=0.0, item=0.02, shared=0.1)
    apart = on_same_items.item_covariance.copy()
    apart[3, :3] = apart[:3, 3] = 0.0
    one, other = on_same_items, replace(on_same_items, item_covariance=apart)
    assert (posterior(one, MARGIN).draws == posterior(other, MARGIN).draws).all()
    assert near.draws.mean(axis=0)[:3] == pytest.approx(means[:3], abs=0.05)


ARMS = st.integers(2, 5).flatmap(
    lambda number: st.tuples(
        st.lists(st.floats(-0.3, 0.3), min_size=number, max_size=number),
        st.lists(st.integers(1, 5), min_size=number, max_size=number),
        st.lists(st.floats(0, 2e-3), min_size=number, max_size=number),
        st.floats(0.003, 0.04),
    )
)


def drawn(arms: tuple[list[float], list[int], list[float], float]) -> NetGains:
    means, seeds, squares, item = arms
    kept = np.where(np.array(seeds) > 1, squares, 0.0)
    return evidence(means, seeds=np.array(seeds, float), squares=kept, item=item, shared=item / 2)


LAWS = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@LAWS
@given(ARMS, st.randoms(use_true_random=False))
def test_neither_the_order_of_arms_nor_the_unit_matters(arms, random) -> None:
    found = drawn(arms)
    before = posterior(found, MARGIN)
    assert (before.draws == posterior(found, MARGIN).draws).all()  # same seed, same numbers
    order = random.sample(range(len(found.means)), len(found.means))
    after = posterior(found.part(np.array(order)), MARGIN)
    assert better(after) == pytest.approx(better(before)[order], abs=2 * FOUR_ERRORS)
    assert after.regret[1:] == pytest.approx(before.regret[1:][order], abs=0.25 * MARGIN)
    squared = {f: 49 * getattr(found, f) for f in ("item_covariance", "squares")}
    scaled = posterior(replace(found, means=7 * found.means, **squared), 7 * MARGIN)
    assert rows(scaled) == pytest.approx(rows(before), abs=0.002)
    assert means_of(scaled) == pytest.approx(7 * means_of(before), rel=1e-3, abs=1e-4)


@LAWS
@given(ARMS, st.sampled_from(["seed", "items", "arm"]))
def test_evidence_that_agrees_never_makes_a_shown_effect_unknown(arms, kind) -> None:
    """One more seed at its arm's mean, as many items again that say the same, or an arm between two
    others with their mean: intervals grow by Monte-Carlo error at most."""
    found = drawn(arms)
    if kind == "items":
        more = replace(found, item_covariance=found.item_covariance / 2)
    elif kind == "seed":
        more = replace(found, seeds=found.seeds + np.eye(len(found.means))[0])
    else:
        means, item = [*found.means, found.means[:2].mean()], arms[3]
        one = evidence(means, item=item, shared=item / 2, ranks=[4] * len(means))
        more = replace(
            one,
            seeds=np.append(found.seeds, found.seeds[:2].min()),
            squares=np.append(found.squares, 0.0),
            axes=np.vstack([found.axes, found.axes[:2].mean(axis=0)]),
        )
    before, after = posterior(found, MARGIN), posterior(more, MARGIN)
    widths = [np.diff(ends_of(p), axis=0)[0] for p in (before, after)]
    assert (widths[1][: len(found.means)] <= 1.15 * widths[0]).all()
    shown = better(before) > 0.95
    assert (better(after)[: len(shown)][shown] > 0.9).all()


def test_many_arms_are_weighed_by_some_of_them() -> None:
    """Above 60 the scales are weighed by 60 arms; all are drawn."""
    truth = np.linspace(0, 0.1, module.MOST_TRIED + 20)
    noisy = truth + np.random.default_rng(0).normal(0, 0.01, len(truth))
    found = evidence(noisy, seeds=MANY, squares=0.0, ranks=np.arange(1, len(truth) + 1))
    means = means_of(posterior(found, MARGIN))
    assert np.abs(means - truth).mean() < 0.7 * np.abs(found.means - truth).mean()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_have_no_posterior_but_the_flat_one(broken: float) -> None:
    found = evidence([0.1, broken, 0.0])
    with pytest.raises((FloatingPointError, np.linalg.LinAlgError)), np.errstate(all="ignore"):
        posterior(found, MARGIN)
    flat = flat_posterior(replace(found, extra=np.array([0.0, np.inf, 0.0])), MARGIN)
    assert np.isfinite(flat.draws).all()
    low, high = ends_of(flat)
    assert high[1] - low[1] > 1000 * MARGIN
    # By hand: items .01, seeds (2 x .01^2 + 6e-4) / (2 + 6) / 3; 1.96 standard errors.
    error = np.sqrt(0.01**2 + (2e-4 + 6e-4) / 8 / 3)
    assert (high[0] - low[0]) / 2 == pytest.approx(1.96 * error, rel=0.06)
