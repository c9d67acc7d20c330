"""Worth of a further score: the expected fall of the regret.

This is a value of information (knowledge gradient, Frazier, Powell & Dayanik 2009). A score moves
the posterior means as much as the draws of net gains and of that score vary together. It moves them
by a standard normal z along one direction g, so the regret falls by E max(mean + g z) - max(mean).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from rankscope.advise.evidence import Measured
from rankscope.advise.net_gains import NetGains
from rankscope.advise.posterior import UNIT, Array, Changes, broken_arms

UNKNOWN_SPREAD = 1000.0  # Standard deviation of an untried arm's scores, in ``UNIT``: none known
NUM_QUANTILES = 64
MOST_VALUED = 100  # Arms of the highest means; one more trial makes no other the best
Untried = tuple[object, tuple[float, float, float]]
"""Kind and axes of an arm that could be tried, as in :class:`Changes`."""


def with_untried(measured: Measured, untried: Sequence[Untried], number: int) -> Measured:
    """Add further arms to the evidence, known only by their settings.

    Args:
        number: number of the study's arms; the places of further ones follow.
    """
    of, more = measured.changes, len(untried)
    if not more:
        return measured
    # An untried arm would err like the mean of the others, and as much as one of them.
    whole = ~broken_arms(of.means)
    typical = of.item_covariance[:, whole].mean(axis=1)[:, None].repeat(more, axis=1)
    own = np.full((more, more), typical[whole].mean())
    np.fill_diagonal(own, np.diag(of.item_covariance)[whole].mean())
    blank = np.zeros(more)
    changes = Changes(
        means=np.append(of.means, blank + np.median(of.means[whole])),  # Almost without weight
        item_covariance=np.block([[of.item_covariance, typical], [typical.T, own]]),
        seeds=np.append(of.seeds, blank + 1),
        varies=np.append(of.varies, blank + 1),
        squares=np.append(of.squares, blank),
        answer_noise=np.append(of.answer_noise, blank + of.answer_noise[whole].mean()),
        kinds=[*of.kinds, *(kind for kind, _ in untried)],
        axes=np.vstack([of.axes, [axes for _, axes in untried]]),
        extra=np.append(of.extra, blank + (UNKNOWN_SPREAD * UNIT) ** 2),
        typical_spread=of.typical_spread,
        prior_mean=of.prior_mean,
    )
    places = (*measured.places, *range(number, number + more))
    return replace(measured, changes=changes, places=places)


def values_of_trials(net: NetGains) -> Array:
    """Return the expected fall of the regret by one more seed of every arm, (A,).

    For an arm that was never tried, it is the first seed.
    """
    mean = net.draws.mean(axis=0)
    best = np.argsort(-mean[: net.num_tried], kind="stable")[:MOST_VALUED]
    kept = np.append(best, np.arange(net.num_tried, len(mean)))
    together = _covariance(net.draws[:, kept], net.on_items[:, kept])
    seen = net.on_items[:, kept].var(axis=0) + net.seed_variance[kept]
    values = np.zeros(len(mean))
    moves = together / np.sqrt(np.maximum(seen, 1e-18))
    values[kept] = [_gain(mean[kept], move) for move in moves.T]
    return values


def value_of_round(net: NetGains, columns: Sequence[int]) -> float:
    """Return the expected fall of the regret by one more seed of each of some arms, together."""
    of = net.on_items[:, list(columns)]
    seen = _covariance(of, of) + np.diag(net.seed_variance[list(columns)])
    return _expected_fall(net.draws, _covariance(net.draws, of), seen)


def value_of_items(net: NetGains) -> float:
    """Return the expected fall of the regret by as many items again, of the same models."""
    kept = np.argsort(-net.draws.mean(axis=0))[:MOST_VALUED]
    part = net.of(kept.tolist())
    # The change of these models on all items is their measured one, minus the error of the items.
    models = part.draws - part.on_items
    seen = _covariance(models, models) + part.item_covariance
    return _expected_fall(part.draws, _covariance(part.draws, models), seen)


def _expected_fall(draws: Array, together: Array, seen: Array) -> float:
    """Return the expected fall of the regret by several scores.

    Args:
        together: covariance of the draws (D, A) with the scores, (A, S).
        seen: covariance of the scores, (S, S).
    """
    mean = draws.mean(axis=0)
    moved = together @ np.linalg.lstsq(seen, together.T, rcond=None)[0]
    sizes, vectors = np.linalg.eigh((moved + moved.T) / 2)
    normal = np.random.default_rng(0).standard_normal((2000, len(mean)))
    means = mean + normal @ (vectors * np.sqrt(np.maximum(0.0, sizes))).T
    best = max(0.0, float(mean.max()))
    return max(0.0, float(means.max(axis=1, initial=0.0).mean()) - best)


def _covariance(first: Array, second: Array) -> Array:
    """Return the covariance over draws, (A, B)."""
    return np.asarray((first - first.mean(axis=0)).T @ (second - second.mean(axis=0)) / len(first))


def _gain(means: Array, direction: Array) -> float:
    """Return E max(0, means + direction z) - max(0, means), z standard normal; 0 is the base."""
    z = special.ndtri((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)
    after = means[:, None] + direction[:, None] * z
    best = max(0.0, float(means.max()))
    return max(0.0, float(np.maximum(after.max(axis=0), 0.0).mean()) - best)
