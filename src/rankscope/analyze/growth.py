"""How the size of the update grows with the rank: arXiv 2512.15634 claims |dW|_F ~ log r."""

import numpy as np

from rankscope.records import NormGrowth

FEWEST_RANKS = 3
"""A line through two points always fits."""


def norm_growth(ranks: list[int], norms: list[float]) -> NormGrowth | None:
    """Least-squares fits of a + b ln r, and of its rival c r^p in logarithms, with residuals.

    Args:
        ranks: of adapters trained alike but for the rank.
        norms: |dW|_F of each over the same matrices.

    Returns:
        None with fewer than three different ranks, or where an update is zero.
    """
    if len(set(ranks)) < FEWEST_RANKS or min(norms) <= 0:
        return None
    x, y = np.log(np.asarray(ranks, float)), np.asarray(norms, float)
    slope, start = np.polyfit(x, y, 1)
    power, level = np.polyfit(x, np.log(y), 1)

    def rms(fitted: np.typing.NDArray[np.float64]) -> float:
        return float(np.sqrt(np.mean((y - fitted) ** 2)))

    return NormGrowth(
        ranks=tuple(ranks),
        norms=tuple(norms),
        start=float(start),
        slope=float(slope),
        rms=rms(start + slope * x),
        power=float(power),
        power_rms=rms(np.exp(level + power * x)),
    )
