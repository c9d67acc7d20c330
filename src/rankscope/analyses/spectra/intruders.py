"""Intruder dimensions: leading singular vectors of W that resemble no singular vector of W0.

Definition (Shuttleworth et al., arXiv 2410.21228): left vector y_j, among the first k of W, is an
intruder if max_i |cos(y_j, x_i)| < epsilon over ALL left vectors x_i of W0. A vector spread evenly
over more than 1 / epsilon^2 base vectors is an intruder too: the word means "no single old
direction", not "outside their span". Counts saturate at k, so the energy share is reported as well.

Scaled exactly, W' = W + (lambda - 1) sum over intruders of u sigma v^T, from the SVD of W: lambda =
1 changes nothing, 0 removes them. The change has rank i, the number of intruders, so an adapter's
rank grows by i and nothing has to be truncated.

Shapes: m = out, n = in, i = intruders.
"""

import torch
from torch import Tensor

from rankscope.analyses.spectra import SpectraConfig
from rankscope.analyses.spectra.leading_vectors import dense_triples
from rankscope.models.low_rank_update import to_float64
from rankscope.models.svd_cache import SVD

Intruders = tuple[tuple[int, ...], tuple[float, ...], float]
"""Indices among the k vectors, from 0, largest singular value first; max_i |cos(y_j, x_i)| of each
of the k vectors; and the intruders' energy, sum sigma^2 over that of all k vectors."""


def intruders_among(cosines: Tensor, S: Tensor, epsilon: float) -> Intruders:
    """The intruders among k leading left vectors of W. ``cosines`` (d0, k) are to ALL left vectors
    of W0; ``S`` (k,) are singular values of W."""
    max_cosine = cosines.abs().max(dim=0).values
    is_intruder = max_cosine < epsilon
    squared = S.cpu().double() ** 2
    total = float(squared.sum())
    energy = float(squared[is_intruder.cpu()].sum()) / total if total else 0.0
    positions = tuple(torch.nonzero(is_intruder).flatten().tolist())
    return positions, tuple(max_cosine.tolist()), energy


SPARE_VECTORS = 16  # Vectors that an iteration keeps beyond those wanted


def scale_intruders(
    weight: Tensor, delta: Tensor, base: SVD, factor: float, settings: SpectraConfig
) -> tuple[Tensor, Tensor]:
    """(lambda - 1) times the intruders of W0 + dW, lambda = ``factor``: left (m, i) @ right (i, n),
    float64. ``base`` is the SVD of W0, whose left vectors decide what is an intruder."""
    tuned = to_float64(weight) + to_float64(delta)
    k = min(settings.intruder_k, *weight.shape)
    is_large = 4 * (k + SPARE_VECTORS) < min(weight.shape)
    triples = dense_triples(base, tuned, k, SPARE_VECTORS, iterate=is_large)
    u, s, v = triples.U, triples.S, triples.V
    positions, *_ = intruders_among(to_float64(base.U).mT @ u, s, settings.intruder_epsilon)
    chosen = list(positions)
    return (factor - 1) * u[:, chosen] * s[chosen], v[:, chosen].mT


def control_factor(delta: Tensor, left: Tensor, right: Tensor) -> float:
    """Scales a whole update dW to the Frobenius norm of dW + left @ right. It may exceed 1: an
    intruder is a direction of W, so scaling it also takes away W0's part in that direction."""
    delta = to_float64(delta)
    norm = float(torch.linalg.matrix_norm(delta))
    if not norm or not left.shape[1]:
        return 1.0
    return float(torch.linalg.matrix_norm(delta + left @ right)) / norm
