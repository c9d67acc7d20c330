"""The gain as a power of the rank, gain = C r^a + d, and where a doubling stops to pay.

The law of arXiv 2605.30260 has a further factor l^-b for rows of length l. Within a training task l
is the same for every rank, so the factor is part of C.

Legend: R ranks, D bootstrap draws, E exponents tried.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.resampling import ScoreArray, resampled_means

FEWEST_FITTED = 3
EXPONENTS = np.linspace(-3, 1, 200)  # Zero, at which C is not defined, is not among them


class PowerLaw(NamedTuple):
    """gain = c r^a + d; every field has the shape of the gains without their ranks."""

    c: ScoreArray
    a: ScoreArray
    d: ScoreArray

    def gain(self, rank: float) -> ScoreArray:
        return np.asarray(self.c * rank**self.a + self.d)


def fit_power_law(ranks: Sequence[int], gains: ScoreArray, errors: ScoreArray) -> PowerLaw:
    """Weighted least squares for gains (D, R) with standard errors (R,).

    For each exponent the best c and d are those of a straight line in (r^a - 1) / a, which becomes
    log r near a = 0; the exponent with the smallest residual counts.
    """
    powers = (np.asarray(ranks, float) ** EXPONENTS[:, None] - 1) / EXPONENTS[:, None]  # (E, R)
    design = np.stack([powers, np.ones_like(powers)], axis=-1) / errors[:, None]
    weighed = gains / errors
    lines = np.einsum("ekr,dr->edk", np.linalg.pinv(design), weighed)
    residuals = weighed - np.einsum("erk,edk->edr", design, lines)
    best = (residuals**2).sum(axis=-1).argmin(axis=0)
    slope, start = lines[best, np.arange(len(gains))].T
    a = EXPONENTS[best]
    return PowerLaw(slope / a, a, start - slope / a)


class _FittedLaw(NamedTuple):
    ranks: tuple[int, ...]
    law: PowerLaw  # Of the measured gains, D = 1
    draws: PowerLaw  # Of gains drawn anew
    ceiling: float  # The gain with every answer right; infinite for log probabilities

    def doubling_sentence(self, margin: float) -> str:
        """From which tried rank on doubling it gains less than ``margin``."""
        once, twice = (
            np.minimum([self.draws.gain(times * r) for r in self.ranks], self.ceiling)
            for times in (1, 2)
        )
        low, high = np.quantile(twice - once, (0.025, 0.975), axis=1)
        for i, rank in enumerate(self.ranks):
            if (high[i:] < margin).all():
                return (
                    f"doubling r gains less than the margin of {margin:g} from r = {rank} on "
                    f"({low[i]:+.3f} to {high[i]:+.3f})"
                )
        if low[-1] > margin:
            return f"doubling r = {self.ranks[-1]} still gains more than the margin of {margin:g}"
        return f"cannot tell from which r on doubling gains less than the margin of {margin:g}"


def fit_curve(curve: Mapping[int, Comparison], seed: int = 0) -> _FittedLaw:
    """Fit tuned against base scores by rank, with a bootstrap over items and seeds.

    Items, up to 2,000, are drawn alike for every rank. The noise between seeds is pooled over the
    ranks: two or three seeds of one rank say little of it.
    """
    ranks = tuple(sorted(curve))
    gains = np.array([curve[r].item_means.mean() for r in ranks])
    draws = np.stack([_item_draws(curve[r], seed) for r in ranks], axis=1)  # (D, R)
    seed_errors = [weighted_estimate([c], tested=False).seed_error for c in curve.values()]
    freedom = sum(len(c.tuned) - 1 for c in curve.values())
    if freedom:
        pooled = float(np.sqrt(np.mean([(e or 0.0) ** 2 for e in seed_errors])))
        rng = np.random.default_rng(seed)
        draws = draws + pooled * rng.standard_t(freedom, draws.shape)
    # Equal items, such as all right, have no spread, yet others may differ.
    floor = [0.5 / curve[r].tuned.shape[1] for r in ranks]
    errors = np.maximum(draws.std(axis=0), floor)
    base, ceiling = curve[ranks[0]].reference, np.inf
    if base is not None and curve[ranks[0]].is_right_or_wrong:
        ceiling = 1 - float(base.mean())
    law, drawn = (fit_power_law(ranks, g, errors) for g in (gains[None], draws))
    return _FittedLaw(ranks, law, drawn, ceiling)


def _item_draws(scores: Comparison, seed: int) -> ScoreArray:
    """Means (D,) of the difference over items, or whole clusters, drawn with replacement."""
    means, labels = scores.item_means, scores.clusters
    if labels is None:
        return resampled_means(means, np.ones(len(means)), seed)
    unit = np.unique(np.asarray(labels), return_inverse=True)[1]
    sums, sizes = np.bincount(unit, weights=means), np.bincount(unit)
    return resampled_means(sums.astype(np.float64), sizes.astype(np.float64), seed)
