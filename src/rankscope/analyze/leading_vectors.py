"""Leading singular vectors of a tuned matrix, by their cosines to the base's: the fast route.

Everything the measures need of W = W0 + dW: its leading singular values, and the cosines of its
leading vectors to every singular vector of W0. Legend: m = out, n = in, d = min(m, n), k = leading
vectors asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankscope.analyze.gram import Product
from rankscope.analyze.low_rank_basis import Core, low_rank_basis
from rankscope.analyze.subspace_iteration import (
    NotConvergedError,
    Triples,
    leading_triples,
    orthonormal,
)
from rankscope.analyze.svd_cache import SVD, double, svd

FEW, SOME = (256, 12), (1024, 3)
"""(d, share): from such a d on, at most d / share vectors are quicker iterated than decomposed."""
TOLERANCE = 1e-8
"""Residual of every triple over the largest singular value, in float64."""
CLUSTER = 1e-6
"""Gap over the largest singular value up to which two count as one cluster."""
ITERATED_FROM = 1024
"""d from which a dense matrix is iterated where few vectors are asked for."""
ITERATED_SHARE = 40
"""Few: at most d over this."""
RANDOM = 16
"""Random vectors in the start of an iteration on a dense matrix."""
UNCERTAIN = 0.01
"""Sine of the angle by which rounding may turn a vector before it is called ill-conditioned."""


@dataclass(frozen=True, slots=True)
class Leading:
    """The leading k singular vectors of W in the basis of W0's."""

    left: Tensor
    """Cosines to every left vector of W0, (d, k)."""
    right: Tensor
    """The same of right vectors, (d, k)."""
    S: Tensor
    """Singular values of W, (k,)."""
    residual: float
    """Largest |W^T u - sigma v| over sigma_1; 0 for a direct decomposition."""
    ill_conditioned: int
    """Vectors within a cluster so close that rounding turns them: single ones mean little."""


def of_adapter(base: SVD, A: Tensor, B: Tensor, scaling: float, k: int) -> Leading:
    """The ``k`` leading vectors of W0 + s B A, from the base's decomposition alone."""
    core = low_rank_basis(base, A, B, scaling)
    d = len(base.S)
    is_quicker = any(d >= least and share * k <= d for least, share in (FEW, SOME))
    found = _iterated(core, k) if is_quicker else None
    if found is None:
        u, s, vh = torch.linalg.svd(core.dense().to(base.S.dtype), full_matrices=False)
        following = float(s[k]) if len(s) > k else 0.0
        found = Triples(u[:, :k], s[:k], vh.mT[:, :k], torch.zeros_like(s[:k]), following)
    left, right = found.U[:d], found.V
    if core.is_transposed:
        left, right = right, left
    return _leading(left, right, found)


def _iterated(core: Core, k: int) -> Triples | None:
    """The leading triples of a core, nothing missed; None where the iteration does not say so."""
    try:
        found = leading_triples(core, core.start(k + max(16, k // 5)), k, TOLERANCE)
    except NotConvergedError:
        return None
    # Each triple is one of K's by its residual; that none was passed over, the count says.
    count, value = certified(found)
    return found if core.count_above(value) == count else None


def certified(found: Triples) -> tuple[int, float]:
    """How many of the triples can be counted, and a value that so many singular values exceed.

    All k where the k-th and the next value are apart. Where they are one cluster, by gaps of at
    most :data:`CLUSTER`, rounding may part it anywhere: then those above it, none where it begins
    with the largest.
    """
    values = [*found.S.tolist(), found.next_value]
    apart = CLUSTER * values[0]
    k = count = len(values) - 1
    while count and values[count - 1] - values[count] <= apart:
        count -= 1
    if count == k:
        return k, (values[k - 1] + values[k]) / 2
    return count, values[count] + apart / 2


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A dense matrix as an operator."""

    W: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """W x."""
        return self.W @ x

    def adjoint(self, y: Tensor) -> Tensor:
        """W^T y."""
        return self.W.mT @ y

    def gram(self) -> Product:
        """W^T W, never formed."""
        return Product(lambda x: self.adjoint(self.apply(x)))

    @staticmethod
    def start(V: Tensor, count: int) -> Tensor:
        """The base's ``count`` leading right vectors, and random ones that any direction meets;
        orthonormal."""
        leading = double(V[:, :count])
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(V), RANDOM, generator=generator, dtype=torch.float64)
        return orthonormal(torch.cat([leading, drawn.to(leading.device)], dim=1))


def of_matrix(base: SVD, tuned: Tensor, k: int) -> Leading:
    """The ``k`` leading vectors of a dense tuned weight (m, n)."""
    found = None
    if len(base.S) >= ITERATED_FROM and ITERATED_SHARE * k <= len(base.S):
        start = DenseMatrix.start(base.V, k + max(16, k // 5))
        try:
            found = leading_triples(DenseMatrix(double(tuned)), start, k, TOLERANCE, least=1)
        except NotConvergedError:
            found = None
    if found is None:
        after = svd(tuned)
        following = float(after.S[k]) if len(after.S) > k else 0.0
        u, v, s = after.U[:, :k], after.V[:, :k], after.S[:k]
        found = Triples(u, s, v, torch.zeros_like(s), following)
    u, v = found.U.to(base.U), found.V.to(base.V)
    return _leading(base.U.mT @ u, base.V.mT @ v, found)


def unchanged(base: SVD, k: int) -> Leading:
    """The base's own vectors: what an update of zero leaves, whatever equal values there are."""
    unit = torch.eye(len(base.S), k, dtype=base.U.dtype, device=base.U.device)
    return Leading(unit, unit, base.S[:k], 0.0, 0)


def _leading(left: Tensor, right: Tensor, found: Triples) -> Leading:
    top = float(found.S[0]) if len(found.S) else 0.0
    return Leading(
        left=left,
        right=right,
        S=found.S,
        residual=float(found.residuals.max()) / top if top else 0.0,
        ill_conditioned=num_ill_conditioned(found),
    )


def num_ill_conditioned(found: Triples) -> int:
    """Vectors that rounding W to float32 may turn by more than a sine of :data:`UNCERTAIN`.

    Davis & Kahan 1970: the sine is at most the perturbation over the distance to the other singular
    values; the perturbation taken is 2^-23 of the largest value, and the triple's own residual.
    """
    s = double(found.S)
    below = torch.cat([s[1:], torch.tensor([found.next_value], dtype=s.dtype, device=s.device)])
    gap = s - below
    gap = torch.minimum(gap, torch.cat([torch.full_like(gap[:1], torch.inf), gap[:-1]]))
    error = double(found.residuals) + torch.finfo(torch.float32).eps * s[:1]
    return int((error > UNCERTAIN * gap).sum())
