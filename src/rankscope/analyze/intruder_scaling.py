"""Intruder dimensions of an adapter scaled down, exactly (Shuttleworth et al., 2410.21228).

W' = W + (lambda - 1) sum over intruders of u sigma v^T, with u, sigma, v of W's SVD: lambda = 1
changes nothing, 0 removes them. The change has the rank of their number, so that the adapter's rank
grows by it and nothing has to be cut. Legend: m = out, n = in, r = rank, i = intruders.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.analyze.intruders import Intruders, intruders_among
from rankscope.analyze.leading_vectors import TOLERANCE, DenseMatrix
from rankscope.analyze.spectra import SpectraSettings
from rankscope.analyze.subspace_iteration import NotConvergedError, leading_triples
from rankscope.analyze.svd_cache import SVD, double

SPARE = 16
"""Vectors beyond those asked for that an iteration keeps."""


@dataclass(frozen=True, slots=True)
class Change:
    """What scaling the intruders of one matrix adds to W, as left @ right."""

    left: Tensor
    """(m, i) float64."""
    right: Tensor
    """(i, n) float64."""
    intruders: Intruders


def intruder_scaling(
    weight: Tensor, delta: Tensor, base: SVD, factor: float, settings: SpectraSettings
) -> Change:
    """(factor - 1) times the intruders of W0 + dW.

    Args:
        weight: W0, (m, n); delta: dW, the same.
        base: W0's decomposition, against whose left vectors intruders are told.
        factor: lambda.
        settings: ``intruder_k`` and ``intruder_epsilon``.
    """
    tuned = double(weight) + double(delta)
    k = min(settings.intruder_k, *weight.shape)
    u, s, v = leading_of(tuned, base, k)
    cosines = double(base.U).mT @ u
    found = intruders_among(cosines, s, settings.intruder_epsilon)
    chosen = list(found.positions)
    left = (factor - 1) * u[:, chosen] * s[chosen]
    return Change(left, v[:, chosen].mT, found)


def leading_of(tuned: Tensor, base: SVD, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (k,) and V (n, k) of a dense matrix in float64: the vectors themselves."""
    d = min(tuned.shape)
    if 4 * (k + SPARE) < d:
        try:
            found = leading_triples(
                DenseMatrix(tuned), DenseMatrix.start(base.V, k + SPARE), k, TOLERANCE, least=1
            )
            return found.U, found.S, found.V
        except NotConvergedError:
            pass
    u, s, vh = torch.linalg.svd(tuned, full_matrices=False)
    return u[:, :k], s[:k], vh[:k].mT


def norm_matched_factor(delta: Tensor, change: Change) -> float:
    """The factor that scales the whole update to the norm that the mitigated one has.

    It may be above 1: intruders are of W, and scaling them takes from W0's share of them as well.
    """
    whole = float(torch.linalg.matrix_norm(double(delta)))
    if not whole or not change.intruders.count:
        return 1.0
    return float(torch.linalg.matrix_norm(double(delta) + change.left @ change.right)) / whole
