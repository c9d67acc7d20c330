"""Intruder dimensions: leading singular vectors of W that resemble no singular vector of W0.

Definition (Shuttleworth et al., arXiv 2410.21228): left vector y_j, among the first k of W, is an
intruder if max_i |cos(y_j, x_i)| < epsilon over ALL left vectors x_i of W0. A vector spread evenly
over more than 1 / epsilon^2 base vectors is an intruder too: the word means "no single old
direction", not "outside their span". Counts saturate at k, so the energy share is reported as well.

"""

import torch
from torch import Tensor

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
