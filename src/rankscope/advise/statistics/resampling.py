"""Bootstrap of a mean over items or over whole clusters.

Legend: N units (items, or clusters), D draws, K kinds of units that are exactly alike.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ScoreArray = npt.NDArray[np.float64]

NUM_DRAWS = 2000
CHUNK_CELLS = 4_000_000  # Weights in memory at once; 32 MB
MOST_KEPT = 2000  # Up to this many units, the table of resampling weights is kept for the next call


def resampled_means(sums: ScoreArray, sizes: ScoreArray, seed: int) -> ScoreArray:
    """Return D bootstrap means, (D,), of units with ``sums`` (N,) of scores over ``sizes`` (N,)
    items.

    Units are drawn whole. Equal arguments give equal draws. Up to ``MOST_KEPT`` units, calls with
    the same seed and number of units draw the same units.
    """
    units = len(sums)
    if units <= MOST_KEPT:
        weights = _kept_weights(units, seed)
        drawn = weights @ sums.astype(np.float32)
        if (sizes == sizes[0]).all():  # every draw has the same number of items
            return np.asarray(drawn / (units * sizes[0]), dtype=np.float64)
        return np.asarray(drawn / (weights @ sizes.astype(np.float32)), dtype=np.float64)
    # Equal units are exchangeable, so resampling their counts is enough: right-or-wrong items of a
    # few models have few kinds.
    kinds, counts = np.unique(np.vstack([sums, sizes]), axis=1, return_counts=True)
    rng = np.random.default_rng([seed, 1])
    if kinds.shape[1] * 8 < units:
        totals = rng.multinomial(units, counts / units, size=NUM_DRAWS) @ kinds.T
        return np.asarray(totals[:, 0] / totals[:, 1])
    means, chunk = np.empty(NUM_DRAWS), max(1, CHUNK_CELLS // units)
    for start in range(0, NUM_DRAWS, chunk):
        size = min(chunk, NUM_DRAWS - start)
        units_drawn = rng.integers(units, size=(size, units))
        total = sums[units_drawn].sum(axis=1)
        means[start : start + size] = total / sizes[units_drawn].sum(axis=1)
    return means


@lru_cache(maxsize=8)
def _kept_weights(units: int, seed: int) -> npt.NDArray[np.float32]:
    """Count how often each unit is drawn, (D, N), at most 16 MB."""
    rng = np.random.default_rng([seed, 1])
    drawn = rng.integers(units, size=(NUM_DRAWS, units))
    drawn += units * np.arange(NUM_DRAWS)[:, None]
    counted = np.bincount(drawn.ravel(), minlength=NUM_DRAWS * units)
    return counted.reshape(NUM_DRAWS, units).astype(np.float32)


def quantiles(draws: ScoreArray, shares: Sequence[float]) -> list[float]:
    """Return quantiles of ``draws`` (D,) with linear interpolation, cheaper than NumPy's."""
    ordered, last = np.sort(draws), len(draws) - 1
    values = []
    for share in shares:
        place = share * last
        low = int(place)
        high = min(low + 1, last)
        values.append(float(ordered[low] + (place - low) * (ordered[high] - ordered[low])))
    return values
