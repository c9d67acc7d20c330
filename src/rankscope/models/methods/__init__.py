"""The registry of fine-tuning methods: the core's, those of extensions and of other packages.

A method needs one file. Study files, records, labels, memory estimates and the documentation ask
here. Import it freely: it loads neither torch nor transformers nor PEFT.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from rankscope.registry import parts

LORA = "lora"  # The default
FULL = "full"


class MethodKind:
    """A method as study files, records and pages know it; ``method.py`` adds its work."""

    name: ClassVar[str]  # In study files and records
    label: ClassVar[str]  # In reports
    summary: ClassVar[str]  # A Markdown sentence for the table in docs/study-file.md
    arm_note: ClassVar[str] = ""  # Why its arms have other settings, after "method NAME"
    arm_fields: ClassVar[tuple[str, ...]] = ()  # Fields of its arms, besides those of all methods
    field_defaults: ClassVar[Mapping[str, Any]] = {}  # Values of optional ``arm_fields``
    trains: ClassVar[bool] = True  # Changes weights
    has_rank: ClassVar[bool] = False  # Trains A (r, in) and B (out, r) of each target
    trains_base: ClassVar[bool] = False  # Trains every weight of the base
    takes_settings: ClassVar[bool] = False  # An arm names it by a mapping, ``{name: settings}``
    settings_example: ClassVar[str] = ""  # Example of such a mapping
    accepts_warm_start: ClassVar[bool] = False  # Can continue training from an adapter on disk
    delta_needs_base: ClassVar[bool] = False  # W - W0 depends on W0, not on A and B alone
    delta_is_low_rank: ClassVar[bool] = True  # W - W0 is s (B A - B0 A0): it has factors
    can_be_sharded: ClassVar[bool] = False  # Trains on several devices, see ``train.devices``
    init_is_part_of_base: ClassVar[bool] = False  # The adapter subtracts A0 and B0
    has_magnitude: ClassVar[bool] = False  # Trains m, a length of each row of W, besides A and B
    peft_fields: ClassVar[Mapping[str, Any]] = {}  # They mark it in PEFT's ``LoraConfig``
    peft_init: ClassVar[str] = ""  # The ``init_lora_weights`` by which PEFT does the same, if any
    unserved_by: ClassVar[Mapping[str, str]] = {}  # Program -> why it cannot serve its adapters
    fills_targets: ClassVar[bool] = True  # Every target gets an adapter

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

    def rank_scale(self, rank: int) -> float:
        """Return the divisor of alpha: s = alpha / rank_scale(r)."""
        return rank


@cache
def _methods() -> dict[str, MethodKind]:
    kinds: dict[str, type[MethodKind]] = parts(MethodKind, __name__)
    return {name: kinds[name]() for name in (LORA, *kinds)}


def all_methods() -> tuple[MethodKind, ...]:
    """Return all methods; ``lora``, the default, is first."""
    return tuple(_methods().values())


def get_method(name: str) -> MethodKind:
    """Return the method of a name. Raises ValueError: there is none."""
    if name in _methods():
        return _methods()[name]
    raise ValueError(f"method {name!r}: expected one of {', '.join(_methods())}")
