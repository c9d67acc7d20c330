"""The joint posterior of the true net gains of all arms of one training task.

Shapes: A arms, N items, K settings of the prior, D draws. Net gains and their errors have one unit;
the base has a net gain of 0. Derivation, calibration: docs/science.md, "From scores to a decision".

*Likelihood.* The measured net gains are normal around the true ones. Their covariance has a part
that all arms share, the choice of items, and a variance between seeds for every arm. Three seeds
hardly show a variance, so the arms pool theirs: that of an arm is drawn around a common one by a
scaled inverse chi-squared of ``OWN_FREEDOM`` degrees of freedom, so that a seed that is far off
counts less (which makes the seeds Student's t).

*Prior.* U = level + smooth function of rank, training rows and rate x alpha^.75 + smooth
function of the rows alone + an offset of the kind (method, target modules, ...): a Gaussian process
(Rasmussen & Williams 2006, ch. 2), whose scales are not chosen but averaged over, by their marginal
likelihood.
Its mean lies a little below the base, because training that gains nothing forgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.float64]

POSTERIOR_DRAWS = 4000
PRIOR_MEAN = -0.5  # Of every net gain, in margins
LEVELS = (0.5, 2.0, 8.0, 32.0)  # Standard deviations of the level, in margins
HEIGHTS = (0.25, 1.0, 4.0, 16.0)  # Of the smooth function and of a kind's offset, in margins
LENGTHS = (1.5, 5.0)  # Distances over which net gains are alike, in units of ``AXIS_LENGTHS``
ROUGHNESS = (0.1, 0.3, 1.0)  # What is not smooth, as a share of the height
GROWTHS = (0.0, 1.0, 4.0)  # Of what all arms of one number of rows share, in margins
GROWTH_LENGTH = 3.0  # Octaves of rows over which that is alike
SEED_SPREADS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # Between seeds, in margins
TYPICAL_SPREAD, SPREAD_FREEDOM = 0.5, 2.0
"""The prior of the common spread: half a margin, as if two degrees of freedom had shown it."""
OWN_FREEDOM = 4.0
FAR_BELOW = 16.0  # Margins below the base, see ``lowest_of``
FLAT_PRIOR = 1000.0  # Standard deviation of the only arm's net gain, in margins: it says nothing
AXIS_LENGTHS = (3.0, 1.0, 0.2)
"""Octaves of rank and of rows, and powers of ten of the rate, that are one unit of distance."""
ROWS_AXIS = 1  # Column of ``axes``
RULED_OUT = 25.0  # Spreads whose squares of seeds are less likely by this logarithm are left out
MOST_TRIED = 60  # Arms by which the scales of the prior are weighed; all count for the posterior
MOST_WORK = 4e8  # A^3 x K: with more arms, only the likeliest scales are averaged over
MOST_UPDATED = 1500  # With more arms, a seed's distance from the smooth function is not used


@dataclass(frozen=True, slots=True)
class NetGains:
    """What was measured of A arms; their settings tell which of them should be alike."""

    means: Array  # Net gains, (A,)
    item_covariance: Array  # Of their errors due to the choice of items, (A, A)
    seeds: Array  # Trained models of each arm, (A,)
    varies: Array  # 1 if seeds of the arm differ; 0 if nothing about it is random, (A,)
    squares: Array
    """Squared deviations of the seeds' net gains from their arm's, summed, (A,)."""
    answer_noise: Array
    """Variance of one seed's net gain by the noise of its answers, part of ``squares``, (A,)."""
    kinds: Sequence[
        object
    ]  # Every setting that is no number; equal for arms of one smooth function
    axes: Array  # log2 of rank and of training rows, log10 of rate x alpha^.75, (A, 3)
    extra: Array  # Further variance, such as of a score before the end of training, (A,)

    def part(self, kept: npt.NDArray[np.intp]) -> "NetGains":
        """Some of the arms."""
        return NetGains(
            means=self.means[kept],
            item_covariance=self.item_covariance[np.ix_(kept, kept)],
            seeds=self.seeds[kept],
            varies=self.varies[kept],
            squares=self.squares[kept],
            answer_noise=self.answer_noise[kept],
            kinds=[self.kinds[i] for i in kept],
            axes=self.axes[kept],
            extra=self.extra[kept],
        )


@dataclass(frozen=True)
class Posterior:
    """Draws from the joint posterior, and what they say of each arm."""

    draws: Array  # True net gains, (D, A)
    margin: float

    @cached_property
    def best(self) -> Array:
        """By draw, the net gain of the best of all arms and the base, (D,)."""
        best: Array = self.draws.max(axis=1, initial=0.0)
        return best

    @cached_property
    def _lost(self) -> Array:
        """By draw, net gain below that of the best, (D, 1 + A); the base first."""
        net = np.column_stack([np.zeros(len(self.draws)), self.draws])
        lost: Array = self.best[:, None] - net
        return lost

    @cached_property
    def regret(self) -> Array:
        """Expected net gain lost against the best of all arms and the base, (1 + A,)."""
        mean: Array = self._lost.mean(axis=0)
        return mean

    @cached_property
    def p_within_margin(self) -> Array:
        """Probability of losing at most the margin, (1 + A,)."""
        p: Array = (self._lost <= self.margin).mean(axis=0)
        return p

    @cached_property
    def p_best(self) -> Array:
        """(1 + A,)"""
        p: Array = np.bincount(self._lost.argmin(axis=1), minlength=self._lost.shape[1]) / len(
            self._lost
        )
        return p


def posterior(evidence: NetGains, margin: float) -> Posterior:
    """Draw from the posterior; the same evidence gives the same draws.

    Raises:
        FloatingPointError: a number is not finite, or no choice of scales has a likelihood.
    """
    rng, number = np.random.default_rng(0), len(evidence.means)
    evidence, taken_off = _as_fitted(evidence, margin)
    tried = np.unique(np.linspace(0, number - 1, min(number, MOST_TRIED)).astype(np.intp))
    few = evidence if len(tried) == number else evidence.part(tried)
    scales = _all_scales(few, margin)
    mixture = _mixture(few, margin, scales)
    if few is not evidence:
        likeliest = np.argsort(-mixture.weights)[: max(1, int(MOST_WORK / number**3))]
        mixture = _mixture(evidence, margin, scales[likeliest])
    is_large = number > MOST_UPDATED
    counts = rng.multinomial(POSTERIOR_DRAWS // 4 if is_large else POSTERIOR_DRAWS, mixture.weights)
    together = POSTERIOR_DRAWS if is_large else POSTERIOR_DRAWS // 256
    draws = [
        mixture.draw(k, min(together, count - first), rng)
        for k, count in enumerate(counts.tolist())
        for first in range(0, count, together)
    ]
    return Posterior(np.concatenate(draws) + taken_off, margin)


def _as_fitted(evidence: NetGains, margin: float) -> tuple[NetGains, Array]:
    """The evidence with net gains above the prior's mean, none of them too far below the base; and
    what was taken off each for it, (A,). An arm that was raised has no covariance with others.
    Raises FloatingPointError: one is not finite."""
    if not np.isfinite(evidence.means).all():
        raise FloatingPointError("a net gain is not finite")
    lowest = lowest_of(evidence.means, margin)
    is_raised = evidence.means < lowest
    shared = np.outer(~is_raised, ~is_raised) | np.eye(len(is_raised), dtype=bool)
    covariance = np.where(shared, evidence.item_covariance, 0.0)
    fitted = np.maximum(evidence.means, lowest) - PRIOR_MEAN * margin
    return replace(evidence, means=fitted, item_covariance=covariance), evidence.means - fitted


def lowest_of(means: Array, margin: float) -> float:
    """The net gain below which it does not matter how low one is: ``FAR_BELOW`` margins, or twice
    the largest gain or the median change, below the base. A model that training broke loses any
    number of nats, which would tell of seeds and ranks that do what they like."""
    return -max(FAR_BELOW * margin, 2 * float(max(means.max(), np.median(np.abs(means)))))


def flat_posterior(evidence: NetGains, margin: float) -> Posterior:
    """What the arms' own scores say of them, without a prior; for evidence that none fits."""
    freedom = SPREAD_FREEDOM + float((evidence.seeds - 1).sum())
    pooled = SPREAD_FREEDOM * (TYPICAL_SPREAD * margin) ** 2 + float(evidence.squares.sum())
    of_seeds = _arm_variance(evidence, np.full(len(evidence.seeds), pooled / freedom))
    error = np.diag(evidence.item_covariance) + of_seeds
    error = np.sqrt(np.where(np.isfinite(error), error, (FLAT_PRIOR * margin) ** 2))
    means = np.where(np.isfinite(evidence.means), evidence.means, 0.0)
    normal = np.random.default_rng(0).standard_normal((POSTERIOR_DRAWS, len(error)))
    return Posterior(means + normal * error, margin)


@dataclass(frozen=True, slots=True)
class NormalPosterior:
    """The posterior for one choice of the scales."""

    weight: float  # Its share of the whole posterior
    scales: Array  # (6,)
    kernel: Array  # Prior covariance, (A, A)
    inverse: Array  # Of the covariance of what was measured, (A, A)
    own: Array  # Variance between the seeds of each arm, (A,)
    mean: Array  # (A,)


def likeliest_posteriors(
    evidence: NetGains, margin: float, most: int, scales: Array | None = None
) -> list[NormalPosterior]:
    """The likeliest choices of the scales, at most ``most``, or the given ``scales`` (K, 6)."""
    evidence, taken_off = _as_fitted(evidence, margin)
    tried = _all_scales(evidence, margin) if scales is None else scales
    mixture = _mixture(evidence, margin, tried)
    found = []
    for k in np.argsort(-mixture.weights)[:most]:
        own = evidence.varies * mixture.own_squares[k] / (OWN_FREEDOM + evidence.seeds)
        inverse = np.linalg.inv(mixture.kernels[k] + _noise(evidence, own[None])[0])
        mean = taken_off + mixture.kernels[k] @ inverse @ evidence.means
        weight = float(mixture.weights[k])
        found.append(NormalPosterior(weight, tried[k], mixture.kernels[k], inverse, own, mean))
    return found


def _all_scales(evidence: NetGains, margin: float) -> Array:
    """Every choice whose spread of seeds is not ruled out by their squares, (K, 6).

    Columns: level, height, length, roughness, spread of seeds, growth with the rows.
    """
    size = 2 * float(np.abs(evidence.means).max()) / margin
    levels = _up_to(LEVELS, size)[-len(LEVELS) :]
    if len(evidence.means) == 1:
        levels = [max(FLAT_PRIOR, 10 * size)]
    heights, spreads = _up_to(HEIGHTS, size), _up_to(SEED_SPREADS, size)
    rows = evidence.axes[evidence.varies > 0, ROWS_AXIS]  # A prompt has none
    growths = GROWTHS if len(set(rows.tolist())) > 1 else GROWTHS[:1]
    scales = np.array(list(product(levels, heights, LENGTHS, ROUGHNESS, spreads, growths)))
    seen = _squares_likelihood(evidence, margin, scales[:, 4])
    return np.asarray(scales[seen > seen.max() - RULED_OUT])


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The posterior as a mixture of normal ones, one for each choice of the scales."""

    evidence: NetGains
    kernels: Array  # Prior covariances, (K, A, A)
    weights: Array  # (K,), they sum to 1
    own_squares: Array
    """Squares by which the variance between an arm's own seeds is drawn, (K, A)."""

    def draw(self, k: int, number: int, rng: np.random.Generator) -> Array:
        """Draws with the ``k``-th scales, (number, A); they share the variances of seeds."""
        evidence, kernel = self.evidence, self.kernels[k]
        own = self.own_squares[k] / rng.chisquare(OWN_FREEDOM + evidence.seeds)
        noise = evidence.item_covariance + np.diag(_arm_variance(evidence, own))
        noise_root, root = _root(noise), _root(kernel)
        # Matheron's rule: a draw of the prior, corrected by how far its measured values are off.
        normal = rng.standard_normal((2, len(own), number))
        net = root @ normal[0]
        off = evidence.means[:, None] - net - noise_root @ normal[1]
        solved = cho_solve(cho_factor(kernel + noise, lower=True), off)
        return np.asarray((net + kernel @ solved).T)


def _root(covariance: Array) -> Array:
    """A lower triangular square root, after a billionth of the mean variance is added."""
    jitter = 1e-9 * float(np.trace(covariance)) / len(covariance) + 1e-18
    return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))))


def _mixture(evidence: NetGains, margin: float, scales: Array) -> _Mixture:
    """Weigh every choice of scales, (K, 6), by its marginal likelihood.

    The variance between the seeds of an arm is the mode given the scales (two rounds of expectation
    and maximization), so that one seed that is far off does not stand for all arms.
    """
    number = len(evidence.means)
    kernels = _kernels(evidence, margin, scales)
    common = np.square(scales[:, 4:5] * margin)  # (K, 1)
    freedom = OWN_FREEDOM + evidence.seeds - 1
    known = OWN_FREEDOM * common + np.maximum(
        0.0, evidence.squares - (evidence.seeds - 1) * evidence.answer_noise
    )
    squares, own = known, known / freedom
    for _ in range(2 if number <= MOST_UPDATED else 0):
        error = evidence.varies * own / evidence.seeds  # Of an arm's mean, by seeds, (K, A)
        inverse = np.linalg.inv(kernels + _noise(evidence, own))
        deviation = error * (inverse @ evidence.means)
        left = error - error**2 * np.diagonal(inverse, axis1=1, axis2=2)
        squares = known + evidence.seeds * (deviation**2 + left)
        own = squares / (freedom + 1)
    if squares is known:
        squares = known + own
    roots = np.linalg.cholesky(kernels + _noise(evidence, own))
    whitened = np.linalg.solve(roots, np.broadcast_to(evidence.means[:, None], (*own.shape, 1)))
    logs = _squares_likelihood(evidence, margin, scales[:, 4])
    # An arm whose seeds explain that it is far off must pay for a variance that its squares deny.
    moved = own * freedom / known
    logs -= (freedom * (np.log(moved) + 1 / moved - 1)).sum(axis=1) / 2
    logs = logs - (whitened**2).sum(axis=(1, 2)) / 2
    logs -= np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    if not np.isfinite(logs).any():
        raise FloatingPointError("no choice of the prior's scales has a likelihood")
    weights = np.exp(logs - np.nanmax(logs))
    weights = np.where(np.isfinite(weights), weights, 0.0)
    return _Mixture(evidence, kernels, weights / weights.sum(), squares)


def _up_to(scales: tuple[float, ...], size: float) -> list[float]:
    """The scales, continued in steps of 4 until one reaches ``size``."""
    found = list(scales)
    while found[-1] < size:
        found.append(4 * found[-1])
    return found


def _squares_likelihood(evidence: NetGains, margin: float, spreads: Array) -> Array:
    """Log of the prior of the common spreads, (K,), and of the squares of seeds that they give.

    Squares over a variance that is drawn by an inverse chi-squared have Fisher's F.
    """
    common = np.square(spreads * margin)[:, None]
    prior = SPREAD_FREEDOM * (TYPICAL_SPREAD * margin) ** 2 / common[:, 0]
    freedom, variance = evidence.seeds - 1, common + evidence.answer_noise
    log_f = freedom * np.log(variance) + (freedom + OWN_FREEDOM) * np.log1p(
        evidence.squares / variance / OWN_FREEDOM
    )
    return np.asarray((SPREAD_FREEDOM * np.log(prior) - prior - log_f.sum(axis=1)) / 2)


def _arm_variance(evidence: NetGains, own: Array) -> Array:
    """Variance of every arm's mean that no other arm shares."""
    return np.asarray(evidence.varies * own / evidence.seeds + evidence.extra)


def _noise(evidence: NetGains, own: Array) -> Array:
    """(K, A, A) for variances between seeds (K, A)."""
    diagonal = _arm_variance(evidence, own)[:, :, None] * np.eye(own.shape[1])
    return np.asarray(evidence.item_covariance + diagonal)


def _kernels(evidence: NetGains, margin: float, scales: Array) -> Array:
    """Prior covariances, (K, A, A)."""
    level, height, length, roughness = np.square(scales[:, :4].T)[:, :, None, None]
    squares = np.square(evidence.axes[:, None] - evidence.axes)
    gaps = squares @ np.square(1 / np.array(AXIS_LENGTHS))
    growth = np.square(scales[:, 5])[:, None, None]
    grown = growth * np.exp(-squares[:, :, ROWS_AXIS] / GROWTH_LENGTH**2 / 2)
    codes = {kind: code for code, kind in enumerate(dict.fromkeys(evidence.kinds))}
    kinds = np.array([codes[kind] for kind in evidence.kinds])
    same = kinds[:, None] == kinds
    alike = same * (1 + np.exp(-gaps / length / 2)) + roughness * np.eye(len(kinds))
    return np.asarray(margin**2 * (level + height * alike + grown))
