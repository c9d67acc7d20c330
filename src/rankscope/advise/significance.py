"""Exact and family-wise tests: McNemar, sign flips, Holm.

Sources and where each is used: docs/science.md, "Statistics".
"""

from collections.abc import Sequence
from math import exp

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

ALPHA = 0.05
"""Level of every test that a decision rests on."""
NUM_FLIPS = 2000
MOST_ENUMERATED = 12
"""Units up to which all 2^units sign flips are counted instead of drawn."""
CHUNK_CELLS = 4_000_000
"""Drawn numbers held at once; 32 MB."""


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of b gains against c losses under a fair coin (McNemar 1947)."""
    if b == c:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))


def sign_flip(parts: Array, seed: int = 0) -> float:
    """Two-sided p that the sum of ``parts`` (units,) is zero, by flipping signs (Fisher 1935).

    If the two models were alike, either sign of a unit's difference would be as likely. Exact for
    up to ``MOST_ENUMERATED`` units that differ at all. Beyond, the smaller of two p that both hold:
    (k + 1) / (D + 1) with D drawn flips, k of them with a sum at least as far from zero (Phipson &
    Smyth 2010), which cannot fall below 1 / (D + 1), and the bound 2 exp(-sum^2 / (2 sum of
    squares)) for any flipped units (Hoeffding 1963), which can.
    """
    # Equal sizes share a binomial draw; rounding joins what only summation order tells apart.
    scale = float(np.abs(parts).max())
    if scale == 0:
        return 1.0
    sizes, counts = np.unique((np.abs(parts) / scale).round(12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    units = int(counts.sum())
    found = abs(float(parts.sum())) / scale - 1e-9 * units
    if units <= MOST_ENUMERATED:
        flips = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
        return float((np.abs(flips @ np.repeat(sizes, counts)) >= found).mean())
    bound = 2 * exp(-(max(0.0, found) ** 2) / (2 * float(counts @ sizes**2)))
    if bound < 1 / (NUM_FLIPS + 1):
        return bound  # further out than the draws can tell
    rng = np.random.default_rng([seed, 2])
    further, chunk = 0, max(1, CHUNK_CELLS // len(sizes))
    for start in range(0, NUM_FLIPS, chunk):
        shape = (min(chunk, NUM_FLIPS - start), len(sizes))
        sums = (2 * rng.binomial(counts, 0.5, size=shape) - counts) @ sizes
        further += int((np.abs(sums) >= found).sum())
    return min(bound, (further + 1) / (NUM_FLIPS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Family-wise adjusted p values in the given order (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for i, position in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[position]))
        adjusted[position] = largest
    return adjusted
