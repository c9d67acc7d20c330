"""Intruder dimensions: leading singular vectors of W that resemble no singular vector of W0.

Definition (Shuttleworth et al., arXiv 2410.21228): left vector y_j, among the first k of W, is an
intruder if max_i |cos(y_j, x_i)| < epsilon over ALL left vectors x_i of W0. A vector spread evenly
over more than 1 / epsilon^2 base vectors is an intruder too: the word means "no single old
direction", not "outside their span". Counts saturate at k, so the energy share is reported as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.errors import UserError


@dataclass(frozen=True, slots=True)
class Intruders:
    """The intruders among the k leading vectors of one matrix."""

    count: int
    energy: float
    """sum sigma^2 of the intruders / sum sigma^2 of the k vectors; 0 for a zero matrix."""
    positions: tuple[int, ...]  # Indices among the k vectors, from 0, largest singular value first
    max_cosine: tuple[float, ...]  # max_i |cos(y_j, x_i)| of each of the k vectors


def intruder_dimensions(
    U0: Tensor, U: Tensor, S: Tensor, k: int = 10, epsilon: float = 0.5
) -> Intruders:
    """Find intruders among the first ``k`` left vectors of the tuned weight.

    Args:
        U0: all left vectors of W0, (m, d0).
        U: left vectors of W, (m, d).
        S: singular values of W, (d,), largest first.

    Raises:
        UserError: k or a shape does not fit.
    """
    if not 1 <= k <= min(U.shape[1], len(S)):
        raise UserError(f"intruders: k = {k}, expected 1 to {min(U.shape[1], len(S))} vectors")
    if U0.shape[0] != U.shape[0]:
        raise UserError(
            f"intruders: left vectors have {U0.shape[0]} and {U.shape[0]} entries, expected the "
            "same number"
        )
    return intruders_among((U0.mT @ U[:, :k].to(U0.dtype)).abs(), S[:k], epsilon)


def intruders_among(cosines: Tensor, S: Tensor, epsilon: float) -> Intruders:
    """Intruders by the cosines to every base vector, ``cosines`` (d0, k), and ``S`` (k,)."""
    max_cosine = cosines.abs().max(dim=0).values
    is_intruder = max_cosine < epsilon
    squared = S.cpu().double() ** 2
    total = float(squared.sum())
    return Intruders(
        count=int(is_intruder.sum()),
        energy=float(squared[is_intruder.cpu()].sum()) / total if total else 0.0,
        positions=tuple(torch.nonzero(is_intruder).flatten().tolist()),
        max_cosine=tuple(max_cosine.tolist()),
    )
