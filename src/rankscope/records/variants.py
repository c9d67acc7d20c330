"""Variants of a trained trial that change it at inference, each scored under its own model id."""

from dataclasses import dataclass
from typing import Literal, get_args

VariantKind = Literal["scale", "layers", "intruders", "control", "truncated"]

MARK = "@"


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of a trained trial's update W - W0 that needs no training.

    ``scale``: the whole update times ``strength``. ``layers``: times a factor that rises linearly
    with depth, from ``strength`` in the first layer to 1 in the last (LiNeS, arXiv 2410.17146).
    ``intruders``: the intruder dimensions of every matrix times ``strength`` (arXiv 2410.21228).
    ``control``: the whole update of every matrix scaled to the norm it has under ``intruders``.
    ``truncated``: every matrix cut to the rank ``strength`` with the least error.
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
