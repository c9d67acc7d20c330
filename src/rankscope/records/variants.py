"""Changes of a trained model: variants of a trial at inference, each scored under its own model id,
and what ``shrink`` changed in an adapter."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rankscope.records.record import Record

VariantKind = Literal["scale", "truncated"]

MARK = "@"


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of a trained trial's update W - W0 that needs no training.

    ``scale``: the whole update times ``strength``. ``truncated``: every matrix cut to the rank
    ``strength`` with the least error.
    """

    kind: VariantKind
    strength: float

    def of(self, trial_id: str) -> str:
        """Model id of the changed trial, such as ``3f2a...@scale=0.5``."""
        return f"{trial_id}{MARK}{self.kind}={self.strength:.12g}"


def trial_of(model_id: str) -> str:
    """The trial id within a model id; ``base`` and plain trial ids are returned unchanged."""
    return model_id.partition(MARK)[0]


def variant_of(model_id: str) -> Variant | None:
    """The variant within a model id; None for the base and for a trial as trained."""
    kind, _, strength = model_id.partition(MARK)[2].partition("=")
    return Variant(kind, float(strength)) if kind in get_args(VariantKind) else None  # type: ignore[arg-type]


# --- what ``shrink`` changed


class MatrixChange(Record):
    name: str
    rank_before: int
    rank_after: int
    frobenius_before: float  # |dW|_F
    frobenius_after: float
    error: float  # |dW - dW'|_F


class AdapterChange(Record):
    source: str
    out: str
    action: str
    matrices: tuple[MatrixChange, ...]
    left_out: dict[str, float] = {}
    """Changed parameters that no adapter on linear layers holds, with their shares of the whole
    update's energy |dW|_F^2; only of a full checkpoint."""
    parameters: int = 0  # Of the adapter
    uniform: tuple[int, int, float] | None = None
    """The largest rank for all matrices within the same budget, its parameters, and the share of
    the energy that it keeps; only with ranks by module."""

    @property
    def frobenius(self) -> float:
        """|dW|_F of the adapter as it was, all matrices together."""
        return math.sqrt(sum(m.frobenius_before**2 for m in self.matrices))

    @property
    def error(self) -> float:
        """|dW - dW'|_F, all matrices together."""
        return math.sqrt(sum(m.error**2 for m in self.matrices))

    @property
    def kept(self) -> float:
        """Share of |dW|_F^2 of these matrices that is kept."""
        return 1 - (self.error / self.frobenius) ** 2 if self.frobenius else 1.0
