"""Exact and family-wise tests: McNemar, sign flips, Holm (docs/science.md, "Statistics")."""

from collections.abc import Sequence
from math import exp

import numpy as np
from scipy import special

from rankscope.advise.statistics.resampling import (
    CHUNK_CELLS,
    MOST_KEPT,
    NUM_DRAWS,
    ScoreArray,
    kept_signs,
)

ALPHA = 0.05  # Level of every test behind a decision
MOST_ENUMERATED = 12
"""Up to this many units, all 2^units sign flips are enumerated instead of drawn."""


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of b gains against c losses under a fair coin (McNemar 1947)."""
    if b == c:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5)))


def sign_flip(parts: ScoreArray) -> float:
    """Two-sided p that the sum of ``parts`` (units,) is zero, by flipping signs (Fisher 1935).

    If the two models were alike, either sign of a unit's difference would be as likely. Exact for
    up to ``MOST_ENUMERATED`` units that differ at all. Beyond, the smaller of two p that both hold:
    (k + 1) / (D + 1) with D drawn flips, k of them with a sum at least as far from zero (Phipson &
    Smyth 2010), which cannot fall below 1 / (D + 1), and the bound 2 exp(-sum^2 / (2 sum of
    squares)) for any flipped units (Hoeffding 1963), which can.
    """
    scale = float(np.abs(parts).max())
    if scale == 0:
        return 1.0
    sizes = np.abs(parts[parts != 0]) / scale
    units = len(sizes)
    # Sums that differ only by the order of summation count as equal.
    observed = abs(float(parts.sum())) / scale - 1e-9 * units
    if units <= MOST_ENUMERATED:
        flips = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
        return float((np.abs(flips @ sizes) >= observed).mean())
    bound = 2 * exp(-(max(0.0, observed) ** 2) / (2 * float(sizes @ sizes)))
    if bound < 1 / (NUM_DRAWS + 1):
        return bound  # below the resolution of the draws
    if units <= MOST_KEPT:
        sums = sizes.astype(np.float32) @ kept_signs(units, 0)
        # In single precision an equally large sum may come out slightly smaller.
        further = int((np.abs(sums) >= observed - 1e-5 * units).sum())
    else:
        further = _further_of_many(sizes, observed)
    return min(bound, (further + 1) / (NUM_DRAWS + 1))


def _further_of_many(sizes: ScoreArray, observed: float) -> int:
    """Number of the D drawn flips whose sum is at least ``observed`` from zero."""
    # Units of equal size share a binomial draw; right-or-wrong items have few sizes.
    sizes, counts = np.unique(sizes.round(12), return_counts=True)
    rng = np.random.default_rng([0, 2])
    further, chunk = 0, max(1, CHUNK_CELLS // len(sizes))
    for start in range(0, NUM_DRAWS, chunk):
        shape = (min(chunk, NUM_DRAWS - start), len(sizes))
        sums = (2 * rng.binomial(counts, 0.5, size=shape) - counts) @ sizes
        further += int((np.abs(sums) >= observed).sum())
    return further


def holm(p_values: Sequence[float | None]) -> list[float]:
    """Family-wise adjusted p values in the given order (Holm 1979); an unknown p counts as 1."""
    known = [1.0 if p is None else p for p in p_values]
    adjusted = [1.0] * len(known)
    largest = 0.0
    for i, position in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        largest = max(largest, min(1.0, (len(known) - i) * known[position]))
        adjusted[position] = largest
    return adjusted
