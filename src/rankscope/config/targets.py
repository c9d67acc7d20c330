"""Target modules of an arm: groups by name, or sets of module names."""

import re
from typing import Any, Literal

from rankscope.config.section import shown

MODULE_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"

TARGET_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "mlp": ("down_proj", "gate_proj", "up_proj"),
    "all-linear": (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ),
}

TargetGroup = Literal["attention", "mlp", "all-linear"]
TargetSet = TargetGroup | list[str]


def as_target_sets(value: Any) -> Any:
    """Targets as a list of sets: ``attention``, a list of groups, of module names, or of sets.

    ``[q_proj, v_proj]`` is one set of two modules; ``[attention, all-linear]`` and
    ``[[q_proj, v_proj], attention]`` are two points of the grid.
    """
    groups = ", ".join(TARGET_GROUPS)
    if isinstance(value, str) and value in TARGET_GROUPS:
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"targets {shown(value)}: expected one of {groups}, or a list of names")
    is_set = [isinstance(entry, list) or entry in TARGET_GROUPS for entry in value]
    if not any(is_set):
        value = [value]
    elif not all(is_set):
        name = value[is_set.index(False)]
        raise ValueError(
            f"targets mix groups and the module name {shown(name)}: put a set of module names into "
            "a list of its own, as in [attention, [q_proj, v_proj]]"
        )
    for names in value:
        if isinstance(names, list):
            checked_names(names)
    return value


def checked_names(names: list[Any]) -> None:
    """Refuse a set of target modules that is empty or holds anything but module names."""
    if not names:
        raise ValueError("targets is empty: name at least one module")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(MODULE_PATTERN, name):
            groups = ", ".join(TARGET_GROUPS)
            raise ValueError(
                f"target {shown(name)}: expected {groups}, or a module name such as 'q_proj'"
            )
