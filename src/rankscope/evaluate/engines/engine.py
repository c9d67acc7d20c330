"""Rankscope's own engine, the base class of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.evaluate.engines import OWN, EngineKind
from rankscope.registry import parts

if TYPE_CHECKING:
    import pyarrow as pa

    from rankscope.evaluate.continuous_batching import Generation, GenerationLimits
    from rankscope.models.base import Base

    Answers = dict[str | None, list[Generation]]

Names = Sequence[str | None]  # Names of adapters; None is the model itself
Prompts = Mapping[str, Sequence[int]]  # Token ids by item id


class Engine(EngineKind):
    """Rankscope's own engine.

    A subclass leaves to it the models that it cannot run. The module of the subclass imports torch
    and records only inside methods.
    """

    name = OWN

    def __init__(self) -> None:
        self.tables: dict[str | None, pa.Table] = {}
        """Tables by adapter name; each is stored with the next score of its model."""

    @staticmethod
    def of(name: str) -> Engine:
        """Return a new engine of this name."""
        kinds: dict[str, type[Engine]] = parts(Engine, __package__)
        return kinds[name]()

    def begin(self, folder_of: Callable[[str | None], Path]) -> None:
        """Prepare for models; ``folder_of`` returns the folder of their weights by adapter name."""

    def generate(
        self, base: Base, prompts: Prompts, names: Names, limits: GenerationLimits
    ) -> Answers:
        """Continue each prompt greedily under each model, like ``continuous_batching.generate``."""
        from rankscope.evaluate.continuous_batching import generate

        return generate(base, [*prompts.values()], names, limits) if names else {}

    def metrics(self, name: str | None) -> dict[str, float]:
        """Return metrics of a model's answers, which are stored with its scores."""
        return {}

    def notes(self) -> list[str]:
        """Return sentences for the log of the run."""
        return []

    def close(self) -> None:
        """End the processes that run between two calls."""


OWN_ENGINE = Engine()
