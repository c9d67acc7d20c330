"""Engines write the greedy answers that are scored: Rankscope's own, and those of extensions.

The study file names one: ``evaluate.engine``. Import this freely: it loads neither torch nor
records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankscope.errors import UserError
from rankscope.registry import parts

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from rankscope.config.study import StudyConfig
    from rankscope.evaluate.continuous_batching import Generation, GenerationLimits
    from rankscope.models.base import Base
    from rankscope.records import EvalRecord

    Answers = dict[str | None, list[Generation]]

AUTO = "auto"
Names = Sequence[str | None]  # Of adapters; None is the model itself
Prompts = Mapping[str, Sequence[int]]  # Token ids by item id


class Engine:
    """Rankscope's own engine. A subclass is another one, which leaves to it what it cannot write.

    The module of a subclass is read with every study file, so its methods import what they need.
    """

    name: ClassVar[str] = "own"

    def __init__(self) -> None:
        self.tables: dict[str | None, pa.Table] = {}
        """By adapter name; each is stored with the next score of its model."""

    @classmethod
    def check(cls, config: "StudyConfig", device: "torch.device", dtype: "torch.dtype") -> None:
        """Raise UserError if it cannot write answers of this study here."""

    @classmethod
    def study_notes(cls, scores: "Iterable[EvalRecord]") -> list[str]:
        """Sentences for the page about models whose answers it wrote."""
        return []

    def begin(self, folder_of: Callable[[str | None], Path]) -> None:
        """Prepare for models, whose weights ``folder_of`` finds by adapter name."""

    def generate(
        self, base: "Base", prompts: Prompts, names: Names, limits: "GenerationLimits"
    ) -> "Answers":
        """Continue every prompt greedily under every model, as ``continuous_batching.generate``."""
        from rankscope.evaluate.continuous_batching import generate

        return generate(base, [*prompts.values()], names, limits) if names else {}

    def metrics(self, name: str | None) -> dict[str, float]:
        """Metrics of a model's answers, stored with its scores."""
        return {}

    def notes(self) -> list[str]:
        """Sentences for the log of the run."""
        return []

    def close(self) -> None:
        """End what runs between two calls."""


OWN = Engine()


def engines() -> dict[str, type[Engine]]:
    """All engines by name, the own one first."""
    return {Engine.name: Engine, **parts(Engine)}


def resolved_engine(config: "StudyConfig", device: "torch.device", dtype: "torch.dtype") -> str:
    """The name of a study's engine. ``auto`` is the first other than the own that can write on a
    GPU. Raises UserError: the one asked for cannot."""
    wish = config.evaluate.engine
    if wish != AUTO:
        engines()[wish].check(config, device, dtype)
        return wish
    for name, kind in [*engines().items()][1:] if device.type == "cuda" else ():
        with suppress(UserError):
            kind.check(config, device, dtype)
            return name
    return Engine.name
