"""A fine-tuning method: the one object that answers the package's questions about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from rankscope.models.methods import MethodKind, get_method

if TYPE_CHECKING:
    from torch import nn

    from rankscope.config.study import GivenConfig
    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.peft_backend.tuner import PeftTuner
    from rankscope.models.study_base import StudyBase
    from rankscope.records import ModelRecord, TrialSpec


class Method(MethodKind):
    """One way to fine-tune.

    To add a LoRA variant, subclass :class:`~rankscope.models.methods.lora.LoraMethod` in a file of
    its own in this folder, or in another package (``registry.py``).
    ``config`` and ``records`` import the registry, so a method's file imports torch, transformers
    and PEFT only inside functions.
    """

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the method of a name. Raises ValueError: it is no method of this class."""
        if isinstance(method := get_method(name), cls):
            return method
        raise ValueError(f"method {name!r} is no {cls.__name__}")

    def check_trial(self, trial: TrialSpec, base: StudyBase, tokens: int, steps: int) -> None:
        """Raise UserError if the method cannot train this trial; called before anything runs.

        Args:
            tokens: tokens of the training task's rows.
            steps: optimizer steps.
        """

    def trainable_parameters(self, trial: TrialSpec, base: StudyBase) -> int:
        """Count the trainable parameters from the shapes of the base."""
        raise NotImplementedError

    def prepare(
        self, base: Base, trial: TrialSpec, context: InitContext, num_steps: int
    ) -> tuple[Base, Adapter | PeftTuner | nn.Module]:
        """Put the method on the base.

        Returns:
            The base to train on, and the object that has ``parameters()``.
        """
        raise NotImplementedError

    def relative_update(self, trained: Adapter | PeftTuner | nn.Module, base: Base) -> float:
        """Return |W - W0|_F / |W0|_F over the weights that the method changes; ``base`` holds W0.

        The result is 0 if the method's effect on the weights cannot be computed.
        """
        raise NotImplementedError

    def read_given(self, given: GivenConfig, name: str, base: StudyBase) -> TrialSpec:
        """Make the trial of a model in a folder, checked against the base without loading it.

        Raises UserError: the model has another base, architecture or tokenizer. Raises
        IntegrityError: it is damaged.
        """
        raise NotImplementedError

    def save(self, trained: Adapter | PeftTuner | Base, record: ModelRecord, folder: Path) -> None:
        """Write a trained trial into an existing, empty folder; ``record`` is the frozen base's."""
        raise NotImplementedError

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        """Put a stored trial on the base, and return the base to score."""
        raise NotImplementedError
