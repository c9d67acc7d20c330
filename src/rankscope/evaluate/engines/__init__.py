"""Engines, which write the greedy answers that are scored; the registry finds them.

The study file and the page ask here. Import it freely: it loads neither torch nor records.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from rankscope.errors import UserError
from rankscope.registry import parts

if TYPE_CHECKING:
    import torch

    from rankscope.config.study import StudyConfig
    from rankscope.records import EvalRecord

AUTO, OWN = "auto", "own"


class EngineKind:
    """An engine as study files and pages know it; ``engine.py`` adds its work."""

    name: ClassVar[str]

    @classmethod
    def check(cls, config: "StudyConfig", device: "torch.device", dtype: "torch.dtype") -> None:
        """Raise UserError if the engine cannot write answers of this study here."""

    @classmethod
    def study_notes(cls, scores: "Iterable[EvalRecord]") -> list[str]:
        """Return sentences for the page about models whose answers this engine wrote."""
        return []


def all_engines() -> dict[str, type[EngineKind]]:
    """Return all engines by name; ``own``, the default, is first."""
    return parts(EngineKind, __name__)


def resolved_engine(config: "StudyConfig", device: "torch.device", dtype: "torch.dtype") -> str:
    """Return the name of a study's engine.

    ``auto`` takes one of an extension that can write on a GPU, else ``own``. Raises UserError: the
    engine that the study names cannot write here.
    """
    wish = config.evaluate.engine
    if wish != AUTO:
        all_engines()[wish].check(config, device, dtype)
        return wish
    for name in [*all_engines()][1:] if device.type == "cuda" else ():
        with suppress(UserError):
            all_engines()[name].check(config, device, dtype)
            return name
    return OWN
