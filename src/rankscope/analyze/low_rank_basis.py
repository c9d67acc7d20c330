"""An adapter's tuned weight in the base's own singular basis: a diagonal plus low rank.

With W0 = U0 S V0^T and dW = s B A, the matrix U0^T W V0 is diag(S) + s (U0^T B)(A V0). Where W0 is
not square one side of the update sticks out of the base's span; its part there is added by a QR
decomposition of what the span leaves. Products cost O(d + d r) a vector, and the singular vectors
in this basis *are* the cosines to every vector of the base.

Legend: m = out, n = in, d = min(m, n), l = max(m, n), r = rank, e <= r = directions outside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.analyze.gram import DiagonalPlusLowRank
from rankscope.analyze.subspace_iteration import orthonormal
from rankscope.analyze.svd_cache import SVD, double


@dataclass(frozen=True, slots=True)
class Core:
    """K = [diag(S) + P Q^T; R Q^T], (d + e, d): W, or W^T where W is wide, in the base's basis."""

    S: Tensor
    """Singular values of W0, (d, 1)."""
    P: Tensor
    """The update's long side within the base's span, (d, r), scaled."""
    R: Tensor
    """The same outside the span, (e, r)."""
    Q: Tensor
    """The update's short side, (d, r)."""
    is_transposed: bool
    """K is W^T's: its left vectors are W's right ones."""

    def apply(self, x: Tensor) -> Tensor:
        """K x, (d, b) -> (d + e, b)."""
        low = self.Q.mT @ x
        inside = torch.addmm(self.S * x, self.P, low)
        return torch.cat([inside, self.R @ low]) if len(self.R) else inside

    def adjoint(self, y: Tensor) -> Tensor:
        """K^T y, (d + e, b) -> (d, b)."""
        d = len(self.S)
        low = self.P.mT @ y[:d]
        if len(self.R):
            low += self.R.mT @ y[d:]
        return torch.addmm(self.S * y[:d], self.Q, low)

    def dense(self) -> Tensor:
        """K itself, (d + e, d)."""
        inside = torch.diag(self.S[:, 0]) + self.P @ self.Q.mT
        return torch.cat([inside, self.R @ self.Q.mT])

    def gram(self) -> DiagonalPlusLowRank:
        """K^T K = S^2 + Z M Z^T with Z = [S P, Q] and M = [0, 1; 1, P^T P + R^T R]."""
        rank = self.P.shape[1]
        identity = torch.eye(rank, dtype=self.P.dtype, device=self.P.device)
        inner = self.P.mT @ self.P + self.R.mT @ self.R
        upper = torch.cat([torch.zeros_like(identity), identity], dim=1)
        middle = torch.cat([upper, torch.cat([identity, inner], dim=1)])
        return DiagonalPlusLowRank(self.S**2, torch.cat([self.S * self.P, self.Q], dim=1), middle)

    def start(self, count: int) -> Tensor:
        """Vectors to begin with, orthonormal: e_1 .. e_count, and what the directions that the
        update brings add to them; (d, b).

        An iteration that begins with the base's vectors alone may miss a new direction.
        """
        d = len(self.S)
        count = min(count, d)
        found = torch.zeros(
            d, min(d, count + self.Q.shape[1]), dtype=self.Q.dtype, device=self.Q.device
        )
        found[:count, :count].fill_diagonal_(1)
        if found.shape[1] > count:
            found[count:, count:] = orthonormal(self.Q[count:])[:, : found.shape[1] - count]
        return found

    def count_above(self, value: float) -> int:
        """How many singular values of K exceed ``value``: exact, by inertia.

        K^T K - t I = (S^2 - t) + Z M Z^T with Z = [S P, Q] and t = value^2. By Haynsworth's
        additivity of inertia its positive eigenvalues are those of S^2 - t, plus those of
        -M^-1 - Z^T (S^2 - t)^-1 Z, less those of -M^-1, of which there are r.
        """
        s, p, q, r = (double(t) for t in (self.S, self.P, self.Q, self.R))
        shifted = s**2 - value**2
        z = torch.cat([s * p, q], dim=1)
        rank = p.shape[1]
        identity = torch.eye(rank, dtype=z.dtype, device=z.device)
        inverse = torch.cat(
            [
                torch.cat([p.mT @ p + r.mT @ r, -identity], dim=1),
                torch.cat([-identity, torch.zeros_like(identity)], dim=1),
            ]
        )
        small = inverse - z.mT @ (z / shifted)
        positive = int((torch.linalg.eigvalsh(small) > 0).sum())
        return int((shifted > 0).sum()) + positive - rank


def low_rank_basis(base: SVD, A: Tensor, B: Tensor, scaling: float) -> Core:
    """The core of W0 + s B A for ``A`` (r, n) and ``B`` (m, r), in float64."""
    m, n = len(base.U), len(base.V)
    u, s, v = (double(t) for t in base)
    long_basis, short_basis = (u, v) if m >= n else (v, u)
    long_side, short_side = (B, A.mT) if m >= n else (A.mT, B)
    long_side, short_side = scaling * double(long_side), double(short_side)
    inside = long_basis.mT @ long_side
    outside = torch.empty(0, long_side.shape[1], dtype=s.dtype, device=s.device)
    if m != n:
        outside = torch.linalg.qr(long_side - long_basis @ inside, mode="r").R
    return Core(s[:, None], inside, outside, short_basis.mT @ short_side, m < n)
