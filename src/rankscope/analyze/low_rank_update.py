"""One matrix's update as an adapter can say it: dW = B A, or DoRA's g (W0 + B A) - W0.

Every change that makes an adapter smaller or milder stays within this family, so that what comes
out is an ordinary adapter again. Legend: m = out, n = in, r = rank; B takes the scaling.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.analyze.intruder_scaling import Change
from rankscope.analyze.svd_cache import double
from rankscope.analyze.truncate import truncated
from rankscope.errors import UserError
from rankscope.models.adapters.scaling import scaled_rows


@dataclass(frozen=True, slots=True)
class Update:
    """dW of one matrix, float64."""

    A: Tensor
    """(r, n)."""
    B: Tensor
    """(m, r)."""
    gain: Tensor | None = None
    """DoRA's g of each output, (m,); None for LoRA."""
    weight: Tensor | None = None
    """W0, (m, n); needed with a gain."""

    @classmethod
    def of_magnitude(cls, A: Tensor, B: Tensor, magnitude: Tensor, weight: Tensor) -> "Update":
        """DoRA's (2402.09353, eq. 5): g = m / |W0 + B A|, row by row."""
        weight = double(weight)
        return cls(A, B, double(magnitude) / (weight + B @ A).norm(dim=1), weight)

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's m, (m,), that gives the rows their gain; None for LoRA."""
        if self.gain is None:
            return None
        assert self.weight is not None
        lengths: Tensor = (self.weight + self.B @ self.A).norm(dim=1)
        return self.gain * lengths

    def dense(self) -> Tensor:
        """dW itself, (m, n)."""
        if self.gain is None:
            return self.B @ self.A
        assert self.weight is not None
        return self.gain[:, None] * (self.weight + self.B @ self.A) - self.weight

    def scaled(self, factor: float) -> "Update":
        """``factor`` dW.

        Raises:
            UserError: a row's g' is not above 0, so that no magnitude can say it.
        """
        if self.gain is None:
            return replace(self, B=factor * self.B)
        gain, b = scaled_rows(self.gain, self.B, factor)
        if not bool((gain > 0).all()):
            raise UserError(
                f"scale {factor}: turns a row of a DoRA weight over; expected a smaller"
            )
        return replace(self, B=b, gain=gain)

    def cut(self, rank: int) -> "Update":
        """The nearest B A of at most ``rank``; gains stay."""
        if len(self.A) <= rank:
            return self
        small = truncated(self.A, self.B, rank)
        return replace(self, A=small.A, B=small.B)

    def plus(self, change: Change) -> "Update":
        """dW + left right: factors beside each other, of DoRA divided by the gain."""
        if not change.left.shape[1]:
            return self
        left = change.left if self.gain is None else change.left / self.gain[:, None]
        return replace(
            self, A=torch.cat([self.A, change.right]), B=torch.cat([self.B, left], dim=1)
        )
