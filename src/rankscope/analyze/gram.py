"""G = K^T K as a filter multiplies with it: one step of a three-term recurrence at a time.

Filtering is nearly all that an iteration spends, and blocks of vectors are so thin that reading and
writing them costs as much as the products. So a step, a (G - c) x - b y, is one call that touches
the block as seldom as it can. Legend: K (m, n), b = vectors in the block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """a (G - c) x - b y."""

    factor: float
    """a."""
    shift: float
    """c."""
    weight: float = 0.0
    """b."""


class Gram(Protocol):
    """K^T K, (n, n)."""

    def step(self, x: Tensor, before: Tensor, step: Step) -> Tensor:
        """a (G - c) x - b before; (n, b) each."""

    def without(self, vectors: Tensor, values: Tensor) -> "Gram":
        """G - sum of values_i v_i v_i^T (deflated): ``vectors`` (n, e), ``values`` (e,)."""


@dataclass(frozen=True, slots=True)
class DiagonalPlusLowRank:
    """diag(D) + Z M Z^T."""

    D: Tensor
    """(n, 1)."""
    Z: Tensor
    """(n, z)."""
    M: Tensor
    """(z, z)."""

    def step(self, x: Tensor, before: Tensor, step: Step) -> Tensor:
        """a (G - c) x - b before; (n, b) each."""
        out = x * (step.factor * (self.D - step.shift))
        if step.weight:
            out.sub_(before, alpha=step.weight)
        return out.addmm_(self.Z, self.M @ (self.Z.mT @ x), alpha=step.factor)

    def without(self, vectors: Tensor, values: Tensor) -> "DiagonalPlusLowRank":
        """G - sum of values_i v_i v_i^T."""
        z = torch.cat([self.Z, vectors], dim=1)
        return DiagonalPlusLowRank(self.D, z, torch.block_diag(self.M, torch.diag(-values)))


@dataclass(frozen=True, slots=True)
class Product:
    """K^T (K x), less deflated vectors."""

    multiply: Callable[[Tensor], Tensor]
    """x (n, b) -> K^T K x."""
    vectors: Tensor | None = None
    """(n, e)."""
    values: Tensor | None = None
    """(e,)."""

    def step(self, x: Tensor, before: Tensor, step: Step) -> Tensor:
        """a (G - c) x - b before; (n, b) each."""
        out = self.multiply(x).sub_(x, alpha=step.shift)
        if self.vectors is not None and self.values is not None:
            out -= self.vectors @ (self.values[:, None] * (self.vectors.mT @ x))
        out.mul_(step.factor)
        return out.sub_(before, alpha=step.weight) if step.weight else out

    def without(self, vectors: Tensor, values: Tensor) -> "Product":
        """G - sum of values_i v_i v_i^T."""
        if self.vectors is not None and self.values is not None:
            vectors = torch.cat([self.vectors, vectors], dim=1)
            values = torch.cat([self.values, values])
        return Product(self.multiply, vectors, values)
