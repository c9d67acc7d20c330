"""Leading singular triples by Chebyshev-filtered block iteration, started close and certified.

Full decompositions of an (m, n) matrix cost O(m n d) whatever is asked; this costs a few dozen
products with a block of k vectors and some to spare, which for a diagonal plus low rank matrix are
nearly free. Filtered subspace iteration: Zhou, Saad, Tiago & Chelikowsky 2006 (J. Comput. Phys.
219), on K^T K. Every sweep amplifies the wanted end of the spectrum over the rest by a Chebyshev
polynomial, then solves the small problem in the block's span (Rayleigh-Ritz).

Legend: K (m, n) with m >= n, G = K^T K, b = vectors in the block, k = triples asked for.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankscope.analyze.gram import Gram, Step
from rankscope.analyze.svd_cache import double

MAX_SWEEPS = 40
MAX_DEGREE = 60
MARGIN = 2.0
"""Logarithm of what a sweep aims below the tolerance."""


class Operator(Protocol):
    """A matrix K (m, n) known by its products alone."""

    def apply(self, x: Tensor) -> Tensor:
        """K x, (n, b) -> (m, b)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """K^T y, (m, b) -> (n, b)."""

    def gram(self) -> Gram:
        """K^T K."""


@dataclass(frozen=True, slots=True)
class Triples:
    """Singular triples of K, largest first, and how well they are known."""

    U: Tensor
    """Left vectors, (m, k)."""
    S: Tensor
    """Singular values, (k,)."""
    V: Tensor
    """Right vectors, (n, k)."""
    residuals: Tensor
    """|K^T u - sigma v|, (k,): a singular value of K lies within this of sigma (Weyl), since
    K v = sigma u holds to rounding."""
    next_value: float
    """Estimate of the first singular value that was not asked for."""
    num_sweeps: int = 0


class NotConvergedError(Exception):
    """The iteration did not reach its tolerance; a direct decomposition is the way."""


def leading_triples(
    operator: Operator, start: Tensor, k: int, tolerance: float, least: int = 0
) -> Triples:
    """The ``k`` leading singular triples of K.

    Args:
        operator: K; products in the dtype of ``start``.
        start: (n, b) orthonormal vectors whose span lies near the wanted right vectors, b > k.
        tolerance: every residual at most this share of the largest singular value.
        least: sweeps that are made in any case. A direction that the start hardly touches has a
            large residual nowhere, and shows only once a sweep has amplified it.

    Raises:
        NotConvergedError: not within :data:`MAX_SWEEPS` sweeps.
    """
    size = min(start.shape[0], k + max(16, k // 5))
    basis, gram = start, operator.gram()
    for sweep in range(MAX_SWEEPS):
        u, s, v = rayleigh_ritz(operator, basis, size)
        residuals = torch.linalg.vector_norm(operator.adjoint(u[:, :k]) - v[:, :k] * s[:k], dim=0)
        if sweep >= least and bool((residuals <= tolerance * s[0]).all()):
            following = float(s[k]) if len(s) > k else 0.0
            return Triples(u[:, :k], s[:k], v[:, :k], residuals, following, sweep)
        left = float(residuals.max() / (tolerance * s[0]))
        missing = math.log(max(left, 1e-300)) + MARGIN
        basis = orthonormal(filtered(gram, (s, v), k, missing))
    raise NotConvergedError(
        f"residual {float(residuals.max() / s[0]):.1e} after {MAX_SWEEPS} sweeps"
    )


def rayleigh_ritz(operator: Operator, basis: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``size`` triples in the span of ``basis``: SVD of K basis by its Gram matrix.

    In float64 the Gram matrix gives values down to 1e-8 of the largest.
    """
    image = operator.apply(basis)
    precise = double(image)
    values, vectors = torch.linalg.eigh(precise.mT @ precise)
    turn = vectors.flip(1)[:, :size].to(basis)
    sigma = values.flip(0)[:size].clamp_min(0).sqrt().to(basis)
    left = image @ turn
    return left / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), sigma, basis @ turn


def filtered(gram: Gram, block: tuple[Tensor, Tensor], k: int, missing: float) -> Tensor:
    """The block after a Chebyshev polynomial in G that is small on [0, cut] and grows above.

    The degree is what brings the k-th vector within the tolerance, kept so small that the largest
    values do not drown the others in rounding errors; those far above are taken out of G first
    (deflated).

    Args:
        gram: G.
        block: values and right vectors of the last sweep, (b,) and (n, b).
        k: vectors wanted.
        missing: logarithm of the factor by which the largest residual has to fall.

    Raises:
        NotConvergedError: the smallest value of the block is 0, which no polynomial damps.
    """
    sigma, v = block
    values = sigma.cpu().double() ** 2
    cut = float(values[-1])
    if cut <= 0:  # a matrix of lower rank than the block: there is nothing to filter out
        raise NotConvergedError(f"{len(values)} vectors span a matrix of lower rank")
    room = -math.log(torch.finfo(v.dtype).eps) - 7  # digits that growth may spread over
    wanted = growth(float(values[k - 1]), cut)
    outliers = num_outliers(values[:k], cut, room)
    fastest = growth(float(values[outliers]), cut)
    degree = max(2, math.ceil(min(room, missing) / max(wanted, 1e-3)))
    if fastest > wanted:
        degree = min(degree, max(2, int(room / (fastest - wanted))))
    degree = min(degree, MAX_DEGREE)
    far, rest = v[:, :outliers], by_columns(v[:, outliers:])
    deflated = gram.without(far, sigma[:outliers] ** 2) if outliers else gram
    # The whole block at once: at 4096 x 600 parts of 64 columns took 2.2 times as long and parts of
    # 256 1.4 times, though they stay in the cache; products of wide blocks are that much faster.
    parts = [chebyshev(deflated, rest, cut, float(values[outliers]), degree)]
    if outliers:  # far above the rest: a low degree is enough for them
        spread = growth(float(values[0]), cut) - growth(float(values[outliers - 1]), cut)
        low = min(degree, max(2, int(room / max(spread, 1e-3))))
        parts.insert(0, chebyshev(gram, far, cut, float(values[0]), low))
    return torch.cat(parts, dim=1)


def by_columns(block: Tensor) -> Tensor:
    """The same block, column after column in memory."""
    return block.mT.contiguous().mT


def num_outliers(values: Tensor, cut: float, room: float) -> int:
    """How many leading values of G to deflate, so that a useful degree fits into ``room``."""
    useful = 12
    last = growth(float(values[-1]), cut)
    for count, value in enumerate(values.tolist()):
        if useful * (growth(value, cut) - last) <= room:
            return count
    return len(values) - 1


def growth(value: float, cut: float) -> float:
    """How fast a Chebyshev polynomial on [0, cut] grows at ``value``: its logarithm per degree."""
    return math.acosh(max(1.0, 2 * value / max(cut, 1e-300) - 1))


def chebyshev(gram: Gram, x: Tensor, cut: float, top: float, degree: int) -> Tensor:
    """T_degree of G, mapped so that [0, cut] becomes [-1, 1], times ``x``; scaled to 1 at ``top``.

    The scaled three-term recurrence of Zhou et al. 2006, algorithm 3.2: nothing overflows.
    """
    half = cut / 2
    sigma = first = half / max(top - half, 1e-300)
    before = x
    now = gram.step(x, x, Step(first / half, half))
    for _ in range(degree - 1):
        following = 1 / (2 / first - sigma)
        after = gram.step(now, before, Step(2 * following / half, half, sigma * following))
        before, now, sigma = now, after, following
    return now


def orthonormal(block: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, unit columns first."""
    scaled = block / torch.linalg.vector_norm(block, dim=0).clamp_min(1e-300)
    q: Tensor = torch.linalg.qr(scaled).Q
    return q
