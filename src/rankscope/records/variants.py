"""Variants of a trained trial at inference, each scored as a model of its own."""

from dataclasses import dataclass
from typing import Literal

VariantKind = Literal["scale", "truncated"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of a trained trial's update W - W0 that needs no training.

    ``scale``: the whole update times ``strength``. ``truncated``: every matrix cut to the rank
    ``strength`` with the least error.
    """

    trial_id: str
    kind: VariantKind
    strength: float

    def __str__(self) -> str:
        """The name of its adapter."""
        return f"{self.trial_id}@{variant_label(self)}"


ScoredModel = str | Variant
"""A model that is scored: ``base``, a trial by its id, or a variant of a trial."""


def trial_of(model: ScoredModel) -> str:
    """The id of a model's trial, or ``base``."""
    return model.trial_id if isinstance(model, Variant) else model


def variant_label(model: ScoredModel) -> str:
    """The kind and strength of a variant, such as ``scale=0.5``; empty for other models."""
    return f"{model.kind}={model.strength:.12g}" if isinstance(model, Variant) else ""
