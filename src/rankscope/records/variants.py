"""Trained trials changed at inference: what is scored under a model id of its own."""

from dataclasses import dataclass
from typing import Literal, get_args

VariantKind = Literal["scale", "layers", "intruders", "control"]

MARK = "@"


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of a trained trial's update W - W0 that needs no training.

    ``scale``: all of it times ``strength``; ``layers``: times a factor that rises linearly with
    depth from ``strength`` in the first layer to 1 in the last (LiNeS, arXiv 2410.17146).
    ``intruders``: the intruder dimensions of every matrix times ``strength`` (arXiv 2410.21228);
    ``control``: the whole update of every matrix scaled to the norm that it has then.
    """

    kind: VariantKind
    strength: float

    def of(self, trial_id: str) -> str:
        """Model id of a trial so changed, in place of a trial id: ``3f2a...@scale=0.5``."""
        return f"{trial_id}{MARK}{self.kind}={self.strength:.12g}"


def trial_of(model_id: str) -> str:
    """The trial that a model id belongs to; ``base`` and a trial id are their own."""
    return model_id.partition(MARK)[0]


def variant_of(model_id: str) -> Variant | None:
    """What was changed of the trial; None for a trial as it was trained, and for the base."""
    kind, _, strength = model_id.partition(MARK)[2].partition("=")
    return Variant(kind, float(strength)) if kind in get_args(VariantKind) else None  # type: ignore[arg-type]
