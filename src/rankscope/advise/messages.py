"""Names of arms in sentences of the advice. Each sentence is written where it is decided."""

from rankscope.models.methods import get_method
from rankscope.records import ArmSummary


def capitalized(text: str) -> str:
    """Capitalize the first letter of a text, unless it begins with a symbol such as ``r=8``."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


def arm_name(arm: ArmSummary) -> str:
    """Name method and settings of an arm: ``LoRA r=32 (alpha 64, lr 0.0002, dropout=0.1)``."""
    rate = ", ".join([f"lr {arm.lr:g}" if arm.lr else "rate not known", *arm.special_settings])
    if arm.is_full:
        return f"full fine-tuning ({rate})"
    if arm.alpha is None:  # the label of a PEFT method already lists its settings
        return arm.label
    return f"{get_method(arm.method).label} r={arm.rank} (alpha {arm.alpha:g}, {rate})"


def verdict_name(arm: ArmSummary) -> str:
    """Name an arm in a few words: ``LoRA rank 32``, ``full fine-tuning``, ``vera``."""
    if not arm.trains:
        return f"the {arm.label} without fine-tuning"
    if arm.is_full:
        return "full fine-tuning"
    has_rank = arm.is_lora and arm.rank is not None
    return f"{get_method(arm.method).label} rank {arm.rank}" if has_rank else arm.short_label
