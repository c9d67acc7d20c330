"""A low-rank update cut to a smaller rank, at the least possible error."""

from typing import NamedTuple

import torch
from torch import Tensor

from rankscope.analyze.svd_cache import double


class Truncated(NamedTuple):
    """Factors of the nearest matrix of smaller rank."""

    A: Tensor
    """(R, n) float64."""
    B: Tensor
    """(m, R) float64."""


def truncated(A: Tensor, B: Tensor, rank: int) -> Truncated:
    """The matrix of rank at most ``rank`` nearest to B A (Eckart & Young 1936).

    By the small core: with B = Q_B R_B and A^T = Q_A R_A, the SVD of B A is that of R_B R_A^T,
    turned by Q_B and Q_A. Both factors get the root of each singular value.

    Args:
        A: (r, n); B: (m, r).
        rank: at least 1; factors have min(rank, r, m, n) rows and columns.
    """
    q_b, r_b = torch.linalg.qr(double(B))
    q_a, r_a = torch.linalg.qr(double(A).mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    root = s[:rank].sqrt()
    return Truncated(
        A=root[:, None] * (vh[:rank] @ q_a.mT),
        B=(q_b @ u[:, :rank]) * root,
    )
