"""What ``shrink`` changed in an adapter."""

import math

from rankscope.records.record import Record


class MatrixChange(Record):
    name: str
    rank_before: int
    rank_after: int
    frobenius_before: float  # |dW|_F
    frobenius_after: float
    error: float  # |dW - dW'|_F
    intruders: int | None = None  # Scaled down; None if the action does not look for them


class AdapterChange(Record):
    source: str
    out: str
    action: str
    matrices: tuple[MatrixChange, ...]

    @property
    def frobenius(self) -> float:
        """|dW|_F of the adapter as it was, all matrices together."""
        return math.sqrt(sum(m.frobenius_before**2 for m in self.matrices))

    @property
    def error(self) -> float:
        """|dW - dW'|_F, all matrices together."""
        return math.sqrt(sum(m.error**2 for m in self.matrices))
