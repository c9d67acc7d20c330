"""Concentration of an update in few parts of a model, from the energy |dW|_F^2 of each part."""

import math
from collections.abc import Sequence


def effective_number(energies: Sequence[float]) -> float:
    """Return exp of the entropy of the shares: n equal parts count n, a single part counts 1.

    The result is 0 if every part is zero.
    """
    total = sum(energies)
    shares = [energy / total for energy in energies if energy > 0]
    return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def gini(energies: Sequence[float]) -> float:
    """Return the Gini coefficient of the shares: 0 for equal parts, 1 - 1/n if one of n has all."""
    size, total = len(energies), sum(energies)
    weighted = sum((2 * i - size - 1) * e for i, e in enumerate(sorted(energies), start=1))
    return weighted / (size * total) if total else 0.0
