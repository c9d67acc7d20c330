"""Variants of a trained trial at inference, each scored under a model id."""

from dataclasses import dataclass
from typing import Literal, get_args

VariantKind = Literal["scale", "truncated"]

_MARK = "@"


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of a trained trial's update W - W0 that needs no training.

    ``scale`` multiplies the whole update by ``strength``. ``truncated`` cuts every matrix to the
    rank ``strength`` with the least error.
    """

    kind: VariantKind
    strength: float

    def __str__(self) -> str:
        return f"{self.kind}={self.strength:.12g}"

    def of(self, trial_id: str) -> str:
        """Return the model id of the changed trial, such as ``3f2a...@scale=0.5``."""
        return f"{trial_id}{_MARK}{self}"


def trial_of(model_id: str) -> str:
    """Return the trial id within a model id; ``base`` and plain trial ids are unchanged."""
    return model_id.partition(_MARK)[0]


def variant_of(model_id: str) -> Variant | None:
    """Return the variant within a model id; None for the base and for a trial as trained."""
    kind, _, strength = model_id.partition(_MARK)[2].partition("=")
    return Variant(kind, float(strength)) if kind in get_args(VariantKind) else None  # type: ignore[arg-type]
