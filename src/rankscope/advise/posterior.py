"""The joint posterior of how much every arm really changed one task.

Shapes: A arms, N items, K settings of the prior, D draws. Changes are fractions of 1 or nats per
token; the base has a change of 0. Derivation, calibration: docs/methods.md, "From scores to a
decision".

*Likelihood.* The measured changes are normal around the true ones. All arms share one part of the
error, the choice of items. Three seeds hardly show how far seeds of an arm are apart, so all arms
share one spread. An arm whose seeds are further apart gets a wider interval around the same mean: a
seed that collapsed is one of the outcomes that a user can expect.

*Prior.* Change = level + smooth function of rank, training rows and rate x alpha^0.75 + smooth
function of the rows alone + an offset of the kind (method, target modules, ...). The functions are
a Gaussian process (Rasmussen & Williams 2006, ch. 2). Its scales are not chosen but averaged over,
by their marginal likelihood.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.float64]

POSTERIOR_DRAWS = 4000
UNIT = 0.02  # Two points, or 0.02 nats per token: the scale of every constant of the prior below
LEVELS = (0.5, 2.0, 8.0, 32.0)  # Standard deviations of the level
HEIGHTS = (0.0625, 0.25, 1.0, 4.0, 16.0)
"""Heights of the smooth function and of a kind's offset; h has a weight of 1 / (1 + h^2)."""
LENGTHS = (1.5, 5.0)  # Distances over which changes are alike, in units of ``AXIS_LENGTHS``
ROUGHNESS = (0.03, 0.2, 1.0)  # Scale of the rough part, as a share of the height
GROWTHS = (0.0, 1.0, 4.0)  # Scale of the part that all arms of one number of rows share
GROWTH_LENGTH = 3.0  # Octaves of rows over which that is alike
SEED_SPREADS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # Between seeds
SPREAD_FREEDOM = 4.0
"""The prior of the common spread acts as if four degrees of freedom had shown the typical one."""
TAIL_FREEDOM = 2.0  # For the squares of seeds, so that an arm whose seeds collapse says little
OWN_FREEDOM = 4.0  # For the inverse chi-squared that an arm's own spread has around the common
FAR_BELOW = 8.0  # See ``broken_arms``
FLAT_PRIOR = 1000.0  # Standard deviation of an arm that no other says anything about
AXIS_LENGTHS = (3.0, 1.0, 0.2)
"""One unit of distance: octaves of rank and of rows, and powers of ten of the rate."""
ROWS_AXIS = 1  # Column of ``axes``
RULED_OUT = 25.0  # Spreads whose squares of seeds are less likely by this logarithm are left out
MOST_TRIED = 60  # Arms by which the scales of the prior are weighed; all count for the posterior
MOST_WORK = 4e8  # A^3 x K: with more arms, only the likeliest scales are averaged over


@dataclass(frozen=True, slots=True)
class Changes:
    """Measured changes of A arms on one task; their settings tell which should be alike."""

    means: Array  # Measured changes against the base, (A,)
    item_covariance: Array  # Covariance of their errors due to the choice of items, (A, A)
    seeds: Array  # Trained models of each arm, (A,)
    varies: Array  # 1 if seeds of the arm differ; 0 if nothing about it is random, (A,)
    squares: Array
    """Squared deviations of the seeds' changes from their arm's, summed, (A,)."""
    answer_noise: Array
    """Variance of one seed's change by the noise of its answers, part of ``squares``, (A,)."""
    kinds: list[object]
    """Every setting that is not a number; equal for arms of one smooth function."""
    axes: Array  # log2 of rank and of training rows, log10 of rate x alpha^.75, (A, 3)
    extra: Array  # Further variance, such as of a score before the end of training, (A,)
    typical_spread: float = 0.35  # Between seeds, before any was seen, in ``UNIT``
    prior_mean: float = 0.0  # In ``UNIT``: training that gains nothing on a task forgets a little

    def part(self, kept: npt.NDArray[np.intp]) -> "Changes":
        """Return some of the arms."""
        rows = ("means", "seeds", "varies", "squares", "answer_noise", "axes", "extra")
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in rows},
            item_covariance=self.item_covariance[np.ix_(kept, kept)],
            kinds=[self.kinds[i] for i in kept],
        )


@dataclass(frozen=True, slots=True)
class Posterior:
    """Draws from the joint posterior of one task's changes."""

    draws: Array  # True changes, (D, A)
    on_items: Array  # Changes of models of many seeds on the items that were scored, (D, A)
    seed_variance: Array  # Variance of one more seed's measurement on these items, (A,)


def broken_arms(means: Array) -> npt.NDArray[np.bool_]:
    """Find arms so far below the median that they tell nothing about the others, (A,).

    Training broke them, or they cannot compete. They lie ``FAR_BELOW`` below it, or twice as far as
    the best lies above it, so the arms of a steep but even rise all count.
    """
    kept = np.ones(len(means), dtype=bool)
    while True:
        middle = float(np.median(means[kept]))
        far = max(FAR_BELOW * UNIT, 2 * (float(means.max()) - middle))
        if (means[kept] >= middle - far).all():
            return ~kept
        kept &= means >= middle - far


def posterior(evidence: Changes, seed_luck: Array | None = None, stream: int = 0) -> Posterior:
    """Draw from the posterior; the same evidence gives the same draws.

    An arm that training broke is judged by its own scores alone.

    Args:
        seed_luck: standard normal draws (A, D) of the seeds' luck, which other tasks may share;
            independent draws by default.
        stream: number of a random stream; draws of two tasks with the same one are not independent.

    Raises:
        FloatingPointError: a number is not finite, or no choice of scales has a likelihood.
    """
    if not np.isfinite(evidence.means).all():
        raise FloatingPointError("a change is not finite")
    rng = np.random.default_rng([3, stream])
    luck = rng.standard_normal((len(evidence.means), POSTERIOR_DRAWS))
    luck = luck if seed_luck is None else seed_luck
    is_broken = broken_arms(evidence.means)
    if not is_broken.any():
        return _shared_posterior(evidence, luck, rng)
    found = flat_posterior(evidence, luck, stream)
    kept = np.flatnonzero(~is_broken)
    shared = _shared_posterior(evidence.part(kept), luck[kept], rng)
    for name in ("draws", "on_items", "seed_variance"):
        getattr(found, name)[..., kept] = getattr(shared, name)
    return found


def _shared_posterior(evidence: Changes, luck: Array, rng: np.random.Generator) -> Posterior:
    number = len(evidence.means)
    tried = np.unique(np.linspace(0, number - 1, min(number, MOST_TRIED)).astype(np.intp))
    few = evidence if len(tried) == number else evidence.part(tried)
    scales = _all_scales(few)
    weights, kernels = _weighed(few, scales)
    if few is not evidence:
        scales = scales[np.argsort(-weights)[: max(1, int(MOST_WORK / number**3))]]
        weights, kernels = _weighed(evidence, scales)
    counts = rng.multinomial(POSTERIOR_DRAWS, weights)
    # Draws of one choice of scales take random places, so that draws of tasks are independent.
    places = np.split(rng.permutation(POSTERIOR_DRAWS), np.cumsum(counts)[:-1])
    draws, on_items = np.empty((2, number, POSTERIOR_DRAWS))
    for k in np.flatnonzero(counts):
        of_scale = _drawn(evidence, kernels[k], scales[k, 4], luck[:, places[k]], rng)
        draws[:, places[k]], on_items[:, places[k]] = of_scale
    own = _own_squares(evidence, np.square(scales[:, 4:5] * UNIT))
    own = weights @ own / (OWN_FREEDOM + evidence.seeds - 3)
    return Posterior(draws.T, on_items.T, evidence.varies * own + evidence.answer_noise)


def _drawn(
    evidence: Changes, kernel: Array, spread: float, luck: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw true changes, and those on the scored items, for one choice of scales; (A, n) each."""
    common = (spread * UNIT) ** 2
    of_seeds = _arm_variance(evidence, common)
    noise = evidence.item_covariance + np.diag(of_seeds)
    normal = rng.standard_normal((2, *luck.shape))
    # Matheron's rule: a draw of the prior, corrected by the error of its measured values.
    change = _root(kernel) @ normal[0]
    item_error = _root(evidence.item_covariance) @ normal[1]
    off = evidence.means[:, None] - _prior_mean(evidence) - change - item_error
    solved = cho_solve(
        cho_factor(kernel + noise, lower=True), off - of_seeds[:, None] ** 0.5 * luck
    )
    on_items = change + item_error + (kernel + evidence.item_covariance) @ solved
    # Seeds of an arm that are further apart than others widen its interval around the same mean.
    freedom = OWN_FREEDOM + evidence.seeds - 1
    own = _own_squares(evidence, common) / (freedom - 2)
    wider = np.maximum(0.0, evidence.varies * own / evidence.seeds + evidence.extra - of_seeds)
    longer = np.sqrt(of_seeds + wider) - np.sqrt(of_seeds)
    tails = np.sqrt(freedom[:, None] / rng.chisquare(freedom[:, None], luck.shape))
    more = _prior_mean(evidence) - longer[:, None] * luck * tails
    return change + kernel @ solved + more, on_items + more


def flat_posterior(evidence: Changes, luck: Array, stream: int = 0) -> Posterior:
    """Draw from each arm's own scores, without a prior; for evidence that no prior fits."""
    means = np.where(np.isfinite(evidence.means), evidence.means, 0.0)[:, None]
    typical = _own_squares(evidence, (evidence.typical_spread * UNIT) ** 2)
    common = float(np.median(typical / (OWN_FREEDOM + evidence.seeds - 1)))
    squares = np.where(np.isfinite(evidence.squares), evidence.squares, 0.0)
    own = np.maximum(common, squares / np.maximum(1, evidence.seeds - 1))
    of_seeds = evidence.varies * own / evidence.seeds + evidence.extra
    items = np.diag(evidence.item_covariance)
    errors = [np.where(np.isfinite(v), v, (FLAT_PRIOR * UNIT) ** 2) for v in (of_seeds, items)]
    seed_error, item_error = (np.sqrt(variance)[:, None] for variance in errors)
    on_items = means + seed_error * luck
    draws = on_items + item_error * np.random.default_rng([4, stream]).standard_normal(luck.shape)
    return Posterior(draws.T, on_items.T, own * evidence.varies + evidence.answer_noise)


def _prior_mean(evidence: Changes) -> float:
    return evidence.prior_mean * UNIT


def _all_scales(evidence: Changes) -> Array:
    """Return every choice of scales that the spread over seeds allows, (K, 6).

    Columns: level, height, length, roughness, spread of seeds, growth with the rows.
    """
    size = 2 * float(np.abs(evidence.means).max()) / UNIT
    levels = _up_to(LEVELS, size)[-len(LEVELS) :]
    if len(evidence.means) == 1:
        levels = [max(FLAT_PRIOR, 10 * size)]
    heights, spreads = _up_to(HEIGHTS, size), _up_to(SEED_SPREADS, size)
    rows = evidence.axes[evidence.varies > 0, ROWS_AXIS]  # A prompt has none
    growths = GROWTHS if len(set(rows.tolist())) > 1 else GROWTHS[:1]
    scales = np.array(list(product(levels, heights, LENGTHS, ROUGHNESS, spreads, growths)))
    seen = _squares_likelihood(evidence, scales[:, 4])
    return np.asarray(scales[seen > seen.max() - RULED_OUT])


def _root(covariance: Array) -> Array:
    """Return a lower triangular square root, after adding a billionth of the mean variance."""
    jitter = 1e-9 * float(np.trace(covariance)) / len(covariance) + 1e-18
    return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))))


def _weighed(evidence: Changes, scales: Array) -> tuple[Array, Array]:
    """Weigh every choice of scales by its marginal likelihood.

    Returns:
        The weights, (K,), and the prior covariances, (K, A, A).
    """
    kernels = _kernels(evidence, scales)
    common = np.square(scales[:, 4:5] * UNIT)  # (K, 1)
    diagonal = _arm_variance(evidence, common)[:, :, None] * np.eye(len(evidence.means))
    roots = np.linalg.cholesky(kernels + evidence.item_covariance + diagonal)
    off = (evidence.means - _prior_mean(evidence))[:, None]
    whitened = np.linalg.solve(roots, np.broadcast_to(off, (len(scales), *off.shape)))
    logs = _squares_likelihood(evidence, scales[:, 4]) - (whitened**2).sum(axis=(1, 2)) / 2
    logs -= np.log1p(scales[:, 1] ** 2)
    logs -= np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    if not np.isfinite(logs).any():
        raise FloatingPointError("no choice of the prior's scales has a likelihood")
    weights = np.exp(logs - np.nanmax(logs))
    weights = np.where(np.isfinite(weights), weights, 0.0)
    return weights / weights.sum(), kernels


def _up_to(scales: tuple[float, ...], size: float) -> list[float]:
    """Return the scales, continued in steps of 4 until one reaches ``size``."""
    found = list(scales)
    while found[-1] < size:
        found.append(4 * found[-1])
    return found


def _squares_likelihood(evidence: Changes, spreads: Array) -> Array:
    """Return the log prior of the common spreads plus the log likelihood of the seeds' squares,
    (K,).

    Squares over a variance that is drawn by an inverse chi-squared have Fisher's F.
    """
    common = np.square(spreads * UNIT)[:, None]
    prior = SPREAD_FREEDOM * (evidence.typical_spread * UNIT) ** 2 / common[:, 0]
    freedom, variance = evidence.seeds - 1, common + evidence.answer_noise
    log_f = freedom * np.log(variance) + (freedom + TAIL_FREEDOM) * np.log1p(
        evidence.squares / variance / TAIL_FREEDOM
    )
    return np.asarray((SPREAD_FREEDOM * np.log(prior) - prior - log_f.sum(axis=1)) / 2)


def _own_squares(evidence: Changes, common: Array | float) -> Array:
    """Return the squares from which an arm's own variance between seeds is drawn, (..., A)."""
    noise = (evidence.seeds - 1) * evidence.answer_noise
    return np.asarray(OWN_FREEDOM * common + np.maximum(0.0, evidence.squares - noise))


def _arm_variance(evidence: Changes, common: Array | float) -> Array:
    """Return the variance of every arm's mean that no other arm shares, (..., A)."""
    freedom = OWN_FREEDOM + evidence.seeds - 1
    expected = common * freedom / (freedom - 2)  # Mean of a scaled inverse chi-squared
    return np.asarray(evidence.varies * expected / evidence.seeds + evidence.extra)


def _kernels(evidence: Changes, scales: Array) -> Array:
    """Return prior covariances, (K, A, A)."""
    level, height, length, roughness = np.square(scales[:, :4].T)[:, :, None, None]
    squares = np.square(evidence.axes[:, None] - evidence.axes)
    gaps = squares @ np.square(1 / np.array(AXIS_LENGTHS))
    growth = np.square(scales[:, 5])[:, None, None]
    grown = growth * np.exp(-squares[:, :, ROWS_AXIS] / GROWTH_LENGTH**2 / 2)
    codes = {kind: code for code, kind in enumerate(dict.fromkeys(evidence.kinds))}
    kinds = np.array([codes[kind] for kind in evidence.kinds])
    same = kinds[:, None] == kinds
    alike = same * (1 + np.exp(-gaps / length / 2)) + roughness * np.eye(len(kinds))
    return np.asarray(UNIT**2 * (level + height * alike + grown))
