"""No training: the base answers after solved examples, or a system text."""

from typing import Any, ClassVar

from rankscope.models.methods.method import Method


class PromptMethod(Method):
    name = "prompt"
    label = "prompt"
    summary = (
        "Nothing trains: the base with `num_fewshot` solved examples, a `system` text, or both."
    )
    arm_fields = ("num_fewshot", "system")
    field_defaults: ClassVar[Any] = {"num_fewshot": None, "system": ""}
    trains = False
    can_be_sharded = True
    arm_note = "trains nothing"

    def trainable_parameters(self, trial: Any, base: Any) -> int:
        return 0
