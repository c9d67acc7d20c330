"""Leading singular vectors by Chebyshev-filtered subspace iteration, with certified residuals.

A full decomposition of an (m, n) matrix costs O(m n d), however few vectors are wanted. This costs
a few dozen products with a block of slightly more than k vectors, which are cheap for a diagonal
plus low-rank matrix. The method is that of Zhou, Saad, Tiago & Chelikowsky 2006 (J. Comput. Phys.
219), on K^T K. Every sweep multiplies the block by a Chebyshev polynomial that amplifies the
leading end of the spectrum, then solves the small problem within the block's span (Rayleigh-Ritz).

Shapes: K (m, n) with m >= n, G = K^T K, b = vectors in the block, k = triples wanted.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankscope.models.low_rank_update import to_float64

MAX_SWEEPS = 40
MAX_DEGREE = 60
SAFETY = 2.0  # Natural logarithm of how far below the tolerance a sweep aims
ROTATION = 0.01  # Sine of the angle of rounding from which a vector is ill-conditioned


class Gram(Protocol):
    """G = K^T K, (n, n).

    A whole step of the recurrence is one method, because for thin blocks memory traffic costs as
    much as products.
    """

    def step(
        self, x: Tensor, before: Tensor, factor: float, shift: float, weight: float = 0.0
    ) -> Tensor:
        """Return factor (G - shift) x - weight before; (n, b) each."""

    def deflate(self, vectors: Tensor, values: Tensor) -> "Gram":
        """Return G - sum of values_i v_i v_i^T: ``vectors`` (n, e), ``values`` (e,)."""


class _Operator(Protocol):
    """A matrix K (m, n), known only by its products."""

    def apply(self, x: Tensor) -> Tensor:
        """Return K x, (n, b) -> (m, b)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return K^T y, (m, b) -> (n, b)."""

    def gram(self) -> Gram:
        """Return K^T K."""


@dataclass(frozen=True, slots=True)
class Triples:
    """Singular triples of K, largest first, with error bounds.

    U and V are singular vectors or, in ``leading_vectors``, their cosines to every vector of W0.
    """

    U: Tensor  # Left, (m, k); cosines (d, k)
    S: Tensor  # Singular values, (k,)
    V: Tensor  # Right, (n, k); cosines (d, k)
    residuals: Tensor
    """|K^T u - sigma v|, (k,). K has a singular value within this distance of sigma (Weyl), because
    K v = sigma u holds up to rounding."""
    next_value: float  # Estimate of singular value k + 1

    @classmethod
    def from_svd(cls, u: Tensor, s: Tensor, v: Tensor, k: int) -> "Triples":
        """Take the first ``k`` triples of a full decomposition, with residual 0."""
        next_value = float(s[k]) if len(s) > k else 0.0
        return cls(u[:, :k], s[:k], v[:, :k], torch.zeros_like(s[:k]), next_value)

    @property
    def residual(self) -> float:
        """Largest residual over the largest singular value; 0 for a full decomposition."""
        top = float(self.S[0]) if len(self.S) else 0.0
        return float(self.residuals.max()) / top if top else 0.0

    @property
    def ill_conditioned(self) -> int:
        """Number of vectors that rounding K to float32 may turn by more than a sine of
        :data:`ROTATION`.

        Davis & Kahan 1970: the sine is at most the perturbation over the distance to the nearest
        other singular value. The perturbation here is 2^-23 of the largest value plus the triple's
        residual.
        """
        s = to_float64(self.S)
        below = torch.cat([s[1:], s.new_tensor([self.next_value])])
        gap = s - below
        gap = torch.minimum(gap, torch.cat([torch.full_like(gap[:1], torch.inf), gap[:-1]]))
        error = to_float64(self.residuals) + torch.finfo(torch.float32).eps * s[:1]
        return int((error > ROTATION * gap).sum())


class NotConvergedError(Exception):
    """The iteration missed its tolerance; use a full decomposition."""


def leading_triples(
    operator: _Operator, start: Tensor, k: int, tolerance: float, min_sweeps: int = 0
) -> Triples:
    """Find the ``k`` leading singular triples of K, with products in the dtype of ``start``.

    ``start`` (n, b) are orthonormal vectors whose span is close to the leading right vectors, b >
    k. ``tolerance`` bounds the residual, as a share of the largest singular value. ``min_sweeps``
    are made in any case: a direction that ``start`` hardly contains shows in no residual until a
    sweep has amplified it. Raises NotConvergedError after :data:`MAX_SWEEPS` sweeps.
    """
    size = min(start.shape[0], k + max(16, k // 5))
    basis, gram = start, operator.gram()
    for sweep in range(MAX_SWEEPS):
        u, s, v = _rayleigh_ritz(operator, basis, size)
        residuals = torch.linalg.vector_norm(operator.adjoint(u[:, :k]) - v[:, :k] * s[:k], dim=0)
        if sweep >= min_sweeps and bool((residuals <= tolerance * s[0]).all()):
            next_value = float(s[k]) if len(s) > k else 0.0
            return Triples(u[:, :k], s[:k], v[:, :k], residuals, next_value)
        excess = float(residuals.max() / (tolerance * s[0]))
        log_reduction = math.log(max(excess, 1e-300)) + SAFETY
        basis = orthonormal(_chebyshev_filter(gram, (s, v), k, log_reduction))
    raise NotConvergedError(
        f"residual {float(residuals.max() / s[0]):.1e} after {MAX_SWEEPS} sweeps"
    )


def _rayleigh_ritz(operator: _Operator, basis: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best ``size`` triples within the span of ``basis``: SVD of K basis by its Gram
    matrix.

    In float64 the Gram matrix resolves values down to 1e-8 of the largest.
    """
    image = operator.apply(basis)
    image64 = to_float64(image)
    values, vectors = torch.linalg.eigh(image64.mT @ image64)
    rotation = vectors.flip(1)[:, :size].to(basis)
    sigma = values.flip(0)[:size].clamp_min(0).sqrt().to(basis)
    left = image @ rotation
    return left / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), sigma, basis @ rotation


def _chebyshev_filter(
    gram: Gram, block: tuple[Tensor, Tensor], k: int, log_reduction: float
) -> Tensor:
    """Multiply the block by a Chebyshev polynomial in G, small on [0, cut] and growing above.

    ``block`` holds the singular values (b,) and right vectors (n, b) of the last sweep. The degree
    brings vector k within the tolerance, ``log_reduction`` below. It is limited so that the largest
    values do not drown the others in rounding error. Values far above the rest are deflated first.
    """
    sigma, v = block
    values = sigma.cpu().double() ** 2
    cut = float(values[-1])
    if cut <= 0:  # K has a lower rank than the block: there is nothing to filter out
        raise NotConvergedError(f"{len(values)} vectors span a matrix of lower rank")
    max_log_growth = -math.log(torch.finfo(v.dtype).eps) - 7  # the digits that growth may cost
    wanted = log_growth(float(values[k - 1]), cut)
    outliers = _num_outliers(values[:k], cut, max_log_growth)
    fastest = log_growth(float(values[outliers]), cut)
    degree = max(2, math.ceil(min(max_log_growth, log_reduction) / max(wanted, 1e-3)))
    if fastest > wanted:
        degree = min(degree, max(2, int(max_log_growth / (fastest - wanted))))
    degree = min(degree, MAX_DEGREE)
    far, rest = v[:, :outliers], v[:, outliers:].mT.contiguous().mT  # column after column
    deflated = gram.deflate(far, sigma[:outliers] ** 2) if outliers else gram
    # Filter the whole block at once: at 4096 x 600, parts of 64 columns took 2.2 times as long and
    # parts of 256 columns 1.4 times, although they stay in the processor's cache.
    parts = [_chebyshev(deflated, rest, cut, float(values[outliers]), degree)]
    if outliers:  # a low degree is enough for values far above the rest
        spread = log_growth(float(values[0]), cut) - log_growth(float(values[outliers - 1]), cut)
        low_degree = min(degree, max(2, int(max_log_growth / max(spread, 1e-3))))
        parts.insert(0, _chebyshev(gram, far, cut, float(values[0]), low_degree))
    return torch.cat(parts, dim=1)


def _num_outliers(values: Tensor, cut: float, max_log_growth: float) -> int:
    """Count the leading values of G to deflate, so that a useful degree fits the growth limit."""
    useful_degree = 12
    smallest = log_growth(float(values[-1]), cut)
    for count, value in enumerate(values.tolist()):
        if useful_degree * (log_growth(value, cut) - smallest) <= max_log_growth:
            return count
    return len(values) - 1


def log_growth(value: float, cut: float) -> float:
    """Return the log per degree of a Chebyshev polynomial on [0, cut] at ``value`` above cut."""
    return math.acosh(max(1.0, 2 * value / max(cut, 1e-300) - 1))


def _chebyshev(gram: Gram, x: Tensor, cut: float, top: float, degree: int) -> Tensor:
    """Return T_degree(G) x with [0, cut] mapped to [-1, 1], scaled to 1 at ``top``.

    The scaled three-term recurrence of Zhou et al. 2006, algorithm 3.2, cannot overflow.
    """
    half = cut / 2
    sigma = first_sigma = half / max(top - half, 1e-300)
    before = x
    now = gram.step(x, x, first_sigma / half, half)
    for _ in range(degree - 1):
        next_sigma = 1 / (2 / first_sigma - sigma)
        after = gram.step(now, before, 2 * next_sigma / half, half, sigma * next_sigma)
        before, now, sigma = now, after, next_sigma
    return now


def orthonormal(block: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns' span; columns are scaled to length 1 first."""
    scaled = block / torch.linalg.vector_norm(block, dim=0).clamp_min(1e-300)
    q: Tensor = torch.linalg.qr(scaled).Q
    return q
