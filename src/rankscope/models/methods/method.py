"""A fine-tuning method: the one object that answers the package's questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn

    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.peft_backend.tuner import PeftTuner
    from rankscope.models.study_base import StudyBase
    from rankscope.records import ModelRecord, TrialSpec


class Method:
    """One way to fine-tune.

    To add a LoRA variant, subclass :class:`~rankscope.models.methods.lora.LoraMethod` in a file of
    its own in this folder, or in another package (``registry.py``).
    ``config`` and ``records`` import the registry, so a method's file imports torch, transformers
    and PEFT only inside functions.
    """

    name: ClassVar[str]  # In study files and records
    label: ClassVar[str]  # In reports
    summary: ClassVar[str]  # A Markdown sentence for the table in docs/study-file.md
    arm_note: ClassVar[str] = ""  # Why its arms have other settings, after "method NAME"
    arm_fields: ClassVar[tuple[str, ...]] = ()  # Of a study's arm, besides those of all methods
    field_defaults: ClassVar[Mapping[str, Any]] = {}  # Of optional ``arm_fields``
    trains: ClassVar[bool] = True  # Changes weights
    has_rank: ClassVar[bool] = False  # Trains A (r, in) and B (out, r) of each target
    trains_base: ClassVar[bool] = False  # Trains every weight of the base
    takes_settings: ClassVar[bool] = False  # An arm names it by a mapping, ``{name: settings}``
    settings_example: ClassVar[str] = ""  # Of such a mapping
    accepts_warm_start: ClassVar[bool] = False  # Can continue training from an adapter on disk
    delta_needs_base: ClassVar[bool] = False  # W - W0 depends on W0, not on A and B alone
    delta_is_low_rank: ClassVar[bool] = True  # W - W0 is s (B A - B0 A0): it has factors
    can_be_sharded: ClassVar[bool] = False  # Trains on several devices, see ``train.devices``
    init_is_part_of_base: ClassVar[bool] = False  # The adapter subtracts A0 and B0
    has_magnitude: ClassVar[bool] = False  # Trains m, a length of each row of W, besides A and B

    @property
    def trains_alone(self) -> bool:
        """Whether the method needs a model of its own, so that trials cannot share one."""
        return not self.has_rank

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise Unfit if an arm's settings cannot be the method's, as far as a study file shows."""

    def hidden_state(self, settings: Mapping[str, Any]) -> str:
        """Name the state that trains besides parameters, which early stopping cannot restore; '' if
        none."""
        return ""

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

    def save(self, trained: Adapter | PeftTuner | Base, record: ModelRecord, folder: Path) -> None:
        """Write a trained trial into an existing, empty folder; ``record`` is the frozen base's."""
        raise NotImplementedError

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        """Put a stored trial on the base, and return the base to score."""
        raise NotImplementedError
