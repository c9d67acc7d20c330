"""The leading singular vectors of a tuned matrix W = W0 + dW, as cosines to those of W0.

All measures of W need only its leading singular values, and the cosines of its leading vectors to
every singular vector of W0. For a low-rank update both come from W0's cached decomposition, without
decomposing W: in the singular basis of W0, the tuned weight is a diagonal plus low rank.

With W0 = U0 S V0^T and W = W0 + B A, the matrix U0^T W V0 is diag(S) + (U0^T B)(A V0). If W0 is not
square, one side of the update has a part outside the span of the base's vectors; a QR decomposition
of that part adds its rows. A product with this matrix costs O(d + d r) per vector. Its singular
vectors *are* the cosines to every singular vector of W0.

Shapes: m = out, n = in, d = min(m, n), k = leading vectors wanted, r = rank, e <= r = directions
outside the span.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.extensions.spectra.subspace_iteration import (
    NotConvergedError,
    Triples,
    leading_triples,
    orthonormal,
)
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.svd_cache import SVD, svd

ITERATE_IF = ((256, 12), (1024, 3))  # (d, share): iterate from d on, for up to d / share vectors
DENSE_ITERATE_IF = (1024, 40)  # Limits for a dense matrix, whose products cost more
TOLERANCE = 1e-8  # Largest residual of a triple over the largest singular value, in float64
CLUSTER = 1e-6  # Gap over the largest singular value up to which two values count as one cluster
NUM_RANDOM = 16  # Random vectors added to the start of an iteration on a dense matrix


@dataclass(frozen=True, slots=True)
class DiagonalPlusLowRank:
    """K = [diag(S) + P Q^T; R Q^T], (d + e, d): W in the base's basis, or W^T if W is wide."""

    S: Tensor  # Singular values of W0, (d, 1)
    P: Tensor  # The update's long side within the span of the base's vectors, (d, r)
    R: Tensor  # The update's long side outside that span, (e, r)
    Q: Tensor  # The update's short side, (d, r)
    is_transposed: bool  # K represents W^T: its left vectors are W's right vectors

    def apply(self, x: Tensor) -> Tensor:
        """Return K x, (d, b) -> (d + e, b)."""
        low = self.Q.mT @ x
        inside = torch.addmm(self.S * x, self.P, low)
        return torch.cat([inside, self.R @ low]) if len(self.R) else inside

    def adjoint(self, y: Tensor) -> Tensor:
        """Return K^T y, (d + e, b) -> (d, b)."""
        d = len(self.S)
        low = self.P.mT @ y[:d]
        if len(self.R):
            low += self.R.mT @ y[d:]
        return torch.addmm(self.S * y[:d], self.Q, low)

    def dense(self) -> Tensor:
        inside = torch.diag(self.S[:, 0]) + self.P @ self.Q.mT
        return torch.cat([inside, self.R @ self.Q.mT])

    def gram(self) -> "_DiagonalPlusLowRankGram":
        """Return K^T K = S^2 + Z M Z^T with Z = [S P, Q] and M = [0, 1; 1, P^T P + R^T R]."""
        identity = torch.eye(self.P.shape[1], dtype=self.P.dtype, device=self.P.device)
        inner = self.P.mT @ self.P + self.R.mT @ self.R
        upper = torch.cat([torch.zeros_like(identity), identity], dim=1)
        middle = torch.cat([upper, torch.cat([identity, inner], dim=1)])
        Z = torch.cat([self.S * self.P, self.Q], dim=1)
        return _DiagonalPlusLowRankGram(self.S**2, Z, middle)

    def start(self, count: int) -> Tensor:
        """Return orthonormal vectors to start an iteration from, (d, b).

        They are e_1 .. e_count, the base's own leading vectors, then the part of Q that they do not
        span. Without that part, a direction that the update adds may be missed.
        """
        d = len(self.S)
        count = min(count, d)
        width = min(d, count + self.Q.shape[1])
        start = torch.zeros(d, width, dtype=self.Q.dtype, device=self.Q.device)
        start[:count, :count].fill_diagonal_(1)
        if width > count:
            start[count:, count:] = orthonormal(self.Q[count:])[:, : width - count]
        return start

    def count_above(self, value: float) -> int:
        """Count the singular values of K that exceed ``value``, exactly, by inertia.

        With t = value^2, K^T K - t I = (S^2 - t) + Z M Z^T, see :meth:`gram`. By Haynsworth's
        additivity of inertia it has as many positive eigenvalues as S^2 - t, plus those of -M^-1 -
        Z^T (S^2 - t)^-1 Z, minus those of -M^-1, which are r.
        """
        s, p, q, r = (to_float64(t) for t in (self.S, self.P, self.Q, self.R))
        shifted = s**2 - value**2
        z = torch.cat([s * p, q], dim=1)
        rank = p.shape[1]
        identity = torch.eye(rank, dtype=z.dtype, device=z.device)
        minus_inverse = torch.cat(
            [
                torch.cat([p.mT @ p + r.mT @ r, -identity], dim=1),
                torch.cat([-identity, torch.zeros_like(identity)], dim=1),
            ]
        )
        small = minus_inverse - z.mT @ (z / shifted)
        positive = int((torch.linalg.eigvalsh(small) > 0).sum())
        return int((shifted > 0).sum()) + positive - rank


@dataclass(frozen=True, slots=True)
class _DiagonalPlusLowRankGram:
    """G = diag(D) + Z M Z^T, (d, d)."""

    D: Tensor  # (d, 1)
    Z: Tensor  # (d, z)
    M: Tensor  # (z, z)

    def step(
        self, x: Tensor, before: Tensor, factor: float, shift: float, weight: float = 0.0
    ) -> Tensor:
        """Return factor (G - shift) x - weight before; (d, b) each."""
        out = x * (factor * (self.D - shift))
        if weight:
            out.sub_(before, alpha=weight)
        return out.addmm_(self.Z, self.M @ (self.Z.mT @ x), alpha=factor)

    def deflate(self, vectors: Tensor, values: Tensor) -> "_DiagonalPlusLowRankGram":
        z = torch.cat([self.Z, vectors], dim=1)
        return _DiagonalPlusLowRankGram(self.D, z, torch.block_diag(self.M, torch.diag(-values)))


def to_base_basis(base: SVD, update: LowRankUpdate) -> DiagonalPlusLowRank:
    """Write W0 + B A in the singular basis of W0, float64, for an update without a gain."""
    m, n = len(base.U), len(base.V)
    u, s, v = (to_float64(t) for t in base)
    A, B = to_float64(update.A), to_float64(update.B)
    long_basis, short_basis, long_side, short_side = (u, v, B, A.mT) if m >= n else (v, u, A.mT, B)
    inside = long_basis.mT @ long_side
    outside = torch.empty(0, long_side.shape[1], dtype=s.dtype, device=s.device)
    if m != n:
        outside = torch.linalg.qr(long_side - long_basis @ inside, mode="r").R
    return DiagonalPlusLowRank(s[:, None], inside, outside, short_basis.mT @ short_side, m < n)


def low_rank_leading_vectors(base: SVD, update: LowRankUpdate, k: int) -> Triples:
    """Find the ``k`` leading triples of W0 + B A, from W0's decomposition alone.

    Vectors are cosines to every vector of W0, (d, k).
    """
    matrix = to_base_basis(base, update)
    d = len(base.S)
    triples = None
    if any(d >= smallest and share * k <= d for smallest, share in ITERATE_IF):
        triples = _iterate_and_count(matrix, k)
    if triples is None:
        u, s, vh = torch.linalg.svd(matrix.dense().to(base.S.dtype), full_matrices=False)
        triples = Triples.from_svd(u, s, vh.mT, k)
    left, right = triples.U[:d], triples.V
    if matrix.is_transposed:
        left, right = right, left
    return replace(triples, U=left, V=right)


def _iterate_and_count(matrix: DiagonalPlusLowRank, k: int) -> Triples | None:
    """Iterate to the leading triples of ``matrix``, certified complete; None if that fails."""
    try:
        triples = leading_triples(matrix, matrix.start(k + max(16, k // 5)), k, TOLERANCE)
    except NotConvergedError:
        return None
    # Residuals show that each triple belongs to the matrix; the count shows that none is missing.
    count, value = countable(triples)
    return triples if matrix.count_above(value) == count else None


def countable(triples: Triples) -> tuple[int, float]:
    """Return how many triples can be counted, and a value that so many singular values exceed.

    All k can be counted if values k and k + 1 are separate. If both are in one cluster, rounding
    may split it anywhere. Then only the triples above the cluster count, and there may be none.
    """
    values = [*triples.S.tolist(), triples.next_value]
    max_gap = CLUSTER * values[0]
    k = count = len(values) - 1
    while count and values[count - 1] - values[count] <= max_gap:
        count -= 1
    if count == k:
        return k, (values[k - 1] + values[k]) / 2
    return count, values[count] + max_gap / 2


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A dense W (m, n) as an operator, and W^T W (never formed), minus deflated vectors."""

    W: Tensor
    vectors: Tensor | None = None  # deflated, (n, e)
    values: Tensor | None = None  # of the deflated vectors, (e,)

    def apply(self, x: Tensor) -> Tensor:
        return self.W @ x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.W.mT @ y

    def gram(self) -> "DenseMatrix":
        return self

    def step(
        self, x: Tensor, before: Tensor, factor: float, shift: float, weight: float = 0.0
    ) -> Tensor:
        out = self.adjoint(self.apply(x)).sub_(x, alpha=shift)
        if self.vectors is not None and self.values is not None:
            out -= self.vectors @ (self.values[:, None] * (self.vectors.mT @ x))
        out.mul_(factor)
        return out.sub_(before, alpha=weight) if weight else out

    def deflate(self, vectors: Tensor, values: Tensor) -> "DenseMatrix":
        if self.vectors is not None and self.values is not None:
            vectors = torch.cat([self.vectors, vectors], dim=1)
            values = torch.cat([self.values, values])
        return DenseMatrix(self.W, vectors, values)


def _dense_triples(base: SVD, tuned: Tensor, k: int) -> Triples:
    """Find the leading triples of a dense matrix.

    A large matrix is iterated, a smaller one decomposed. The iteration starts from W0's leading
    right vectors, and from random ones, which share a part with any direction, new ones included.
    """
    smallest, share = DENSE_ITERATE_IF
    if len(base.S) >= smallest and share * k <= len(base.S):
        leading = to_float64(base.V[:, : k + max(16, k // 5)])
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(base.V), NUM_RANDOM, generator=generator, dtype=torch.float64)
        start = orthonormal(torch.cat([leading, noise.to(leading.device)], dim=1))
        matrix = DenseMatrix(to_float64(tuned))
        with suppress(NotConvergedError):
            return leading_triples(matrix, start, k, TOLERANCE, min_sweeps=1)
    return Triples.from_svd(*svd(tuned), k)


def dense_leading_vectors(base: SVD, tuned: Tensor, k: int) -> Triples:
    """Find the ``k`` leading triples of a dense tuned weight (m, n).

    Vectors are cosines to every vector of W0, (d, k).
    """
    triples = _dense_triples(base, tuned, k)
    u, v = triples.U.to(base.U), triples.V.to(base.V)
    return replace(triples, U=base.U.mT @ u, V=base.V.mT @ v)
