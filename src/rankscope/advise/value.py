"""What the next trial is worth: the expected fall of the regret if it is trained (value of
information; knowledge gradient, Frazier, Powell & Dayanik 2009).

One more seed of an arm changes one variance of the evidence, so the posterior means move along one
direction g by a standard normal z: the regret falls by E max(mean + g z) - max(mean).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from rankscope.advise.posterior import (
    Array,
    NetGains,
    NormalPosterior,
    likeliest_posteriors,
)

UNKNOWN_SPREAD = 1000.0  # Standard deviation of an untried arm's scores, in margins: none known
NUM_QUANTILES = 64
MOST_SCALES = 48  # Choices of the prior's scales that are averaged over
MOST_VALUED = 100  # Of the highest means; the others will not become the best by one more trial
Untried = tuple[object, tuple[float, float, float]]
"""Kind and axes of an arm that could be tried, as in :class:`NetGains`."""


def with_untried(evidence: NetGains, untried: Sequence[Untried], margin: float) -> NetGains:
    """The evidence with further arms, whose settings alone are known."""
    number = len(untried)
    if not number:
        return evidence
    typical = evidence.item_covariance.mean()  # Errors that all arms share, such as the base's
    size = len(evidence.means)
    covariance = np.full((size + number, size + number), typical)
    covariance[:size, :size] = evidence.item_covariance
    own = np.diag(evidence.item_covariance).mean() - typical
    covariance[np.arange(size, size + number), np.arange(size, size + number)] += max(0.0, own)
    return NetGains(
        means=np.append(evidence.means, np.zeros(number)),
        item_covariance=covariance,
        seeds=np.append(evidence.seeds, np.ones(number)),
        varies=np.append(evidence.varies, np.ones(number)),
        squares=np.append(evidence.squares, np.zeros(number)),
        answer_noise=np.append(evidence.answer_noise, np.zeros(number)),
        kinds=[*evidence.kinds, *(kind for kind, _ in untried)],
        axes=np.vstack([evidence.axes, [axes for _, axes in untried]]),
        extra=np.append(evidence.extra, np.full(number, (UNKNOWN_SPREAD * margin) ** 2)),
    )


def values_of_trials(evidence: NetGains, margin: float, num_untried: int = 0) -> Array:
    """Expected fall of the regret by one more seed of every arm, (A,); of one that was stopped or
    never tried, by its first whole one.

    Args:
        num_untried: the last arms, which were never tried.
    """
    tried = len(evidence.means) - num_untried
    best = np.argsort(-evidence.means[:tried], kind="stable")[:MOST_VALUED]
    kept = np.append(best, np.arange(tried, len(evidence.means)))
    values = np.zeros(len(evidence.means))
    values[kept] = _values(evidence.part(kept), margin)
    return values


def _values(evidence: NetGains, margin: float) -> Array:
    found, mean = _likeliest(evidence, margin)
    values = np.zeros(len(mean))
    for weight, f in found:
        variance = f.own / evidence.seeds + evidence.extra
        # A stopped or untried arm gets a whole seed instead of what it had.
        fall = variance - np.where(evidence.extra > 0, f.own, f.own / (evidence.seeds + 1))
        size = np.maximum(0.0, fall / (1 - fall * np.diag(f.inverse)))
        # Column a: how far the means move by the new score of arm a.
        moves = f.kernel @ f.inverse * np.sqrt(size)
        values += weight * np.array([_gain(mean, move) for move in moves.T])
    return values


def _likeliest(
    evidence: NetGains, margin: float
) -> tuple[list[tuple[float, NormalPosterior]], Array]:
    """The likeliest normal posteriors with their weights, and the mean over them, (A,)."""
    found = likeliest_posteriors(evidence, margin, MOST_SCALES)
    total = sum(f.weight for f in found)
    weighed = [(f.weight / total, f) for f in found]
    return weighed, np.asarray(np.sum([weight * f.mean for weight, f in weighed], axis=0))


def value_of_items(evidence: NetGains, margin: float) -> float:
    """Expected fall of the regret by as many items again."""
    kept = np.argsort(-evidence.means)[:MOST_VALUED]
    part = evidence.part(kept)
    halved = replace(part, item_covariance=part.item_covariance / 2)
    found, mean = _likeliest(part, margin)
    normal, value = np.random.default_rng(0).standard_normal((2000, len(kept))), 0.0
    for weight, now in found:
        (then,) = likeliest_posteriors(halved, margin, 1, now.scales[None])
        moved = now.kernel @ (then.inverse - now.inverse) @ now.kernel
        sizes, vectors = np.linalg.eigh((moved + moved.T) / 2)
        root = vectors * np.sqrt(np.maximum(0.0, sizes))
        means = np.column_stack([np.zeros(2000), mean + normal @ root.T])  # The base first
        taken = means[:, np.append(0.0, mean).argmax()]
        value += weight * float((means.max(axis=1) - taken).mean())
    return value


def _gain(means: Array, direction: Array) -> float:
    """E max(0, means + direction z) - max(0, means), z standard normal; 0 is the base."""
    z = special.ndtri((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)
    after = means[:, None] + direction[:, None] * z
    best = max(0.0, float(means.max()))
    return max(0.0, float(np.maximum(after.max(axis=0), 0.0).mean()) - best)
