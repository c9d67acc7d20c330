"""Power: the smallest detectable difference, and the items and seeds needed to detect one.

A paired difference is detected with power .8 at alpha .05 if it is (quantile of the interval +
quantile of the power) standard errors. As in the intervals (``estimates.py``), items count with the
normal distribution and seeds with Student's t.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from rankscope.records import Estimate

ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 200  # More seeds than this are never recommended


def detectable(estimate: Estimate) -> float | None:
    """Smallest difference detected with power .8 by these items and seeds; None if unknown.

    With one seed it refers to that trained model, without the variation between seeds.
    """
    if estimate.item_error is None:
        return None
    seeds = estimate.seed_error or 0.0
    squares = (_factor(None) * estimate.item_error) ** 2
    if seeds:
        squares += (_factor(estimate.seeds) * seeds) ** 2
    return sqrt(squares) or None


@dataclass(frozen=True, slots=True)
class _DataNeeded:
    """The data needed to detect an effect; None if no amount of it is enough, or if unknown."""

    items: int | None  # Test items, with the present seeds
    seeds: int | None  # Seeds, with the present items
    both: tuple[int, int] | None  # Items and seeds together, each with half of the allowed variance


def data_needed(estimate: Estimate, effect: float) -> _DataNeeded:
    """Data needed to detect a difference of ``effect`` with the noise of ``estimate``."""
    if estimate.item_error is None or effect <= 0:
        return _DataNeeded(None, None, None)
    at_one_item = (_factor(None) * estimate.item_error) ** 2 * estimate.n
    if estimate.seed_error is None:  # one seed: their variation is unknown
        return _DataNeeded(_ceil(at_one_item / effect**2), None, None)
    at_one_seed = estimate.seed_error**2 * estimate.seeds
    by_seeds = _factor(estimate.seeds) ** 2 * estimate.seed_error**2
    left_to_items = effect**2 - by_seeds
    left_to_seeds = effect**2 - at_one_item / estimate.n
    both_seeds = _seeds(at_one_seed, effect**2 / 2)
    return _DataNeeded(
        items=_ceil(at_one_item / left_to_items) if left_to_items > 0 else None,
        seeds=_seeds(at_one_seed, left_to_seeds) if left_to_seeds > 0 else None,
        both=None if both_seeds is None else (_ceil(2 * at_one_item / effect**2), both_seeds),
    )


def _seeds(at_one_seed: float, allowed: float) -> int | None:
    """Smallest number of seeds, at least three, whose variance is allowed."""
    for seeds in range(3, MOST_SEEDS + 1):
        if _factor(seeds) ** 2 * at_one_seed / seeds <= allowed:
            return seeds
    return None


def _factor(seeds: int | None) -> float:
    """Standard errors that a detectable difference has; ``seeds`` None: normal distribution."""
    if seeds is None:
        return float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
    freedom = max(1, seeds - 1)
    return float(stats.t.ppf(1 - ALPHA / 2, freedom) + stats.t.ppf(POWER, freedom))


def _ceil(items: float) -> int:
    return max(1, int(np.ceil(items - 1e-9)))
