"""Names of arms, and estimates as plain numbers, for the sentences of the advice."""

from rankscope.models.methods import get_method
from rankscope.records import ArmSummary, Estimate


def settings(arm: ArmSummary) -> str:
    """Method and settings of an arm: ``LoRA r=32 (alpha 64, lr 0.0002, dropout=0.1)``."""
    rate = ", ".join([f"lr {arm.lr:g}", *arm.special_settings])
    if arm.is_full:
        return f"full fine-tuning ({rate})"
    if arm.alpha is None:  # a method of PEFT's, with settings of its own
        return arm.label
    name = get_method(arm.method).label
    return f"{name} r={arm.rank} (alpha {arm.alpha:g}, {rate})"


def values_of(estimate: Estimate, name: str) -> dict[str, float]:
    """An estimate as plain numbers: ``name``, ``name_low``, ``name_p``, ``name_error``, ``n``..."""
    found = {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_p": estimate.p,
        "n": float(estimate.n),
        "seeds": float(estimate.seeds),
        f"{name}_error": estimate.standard_error,
        f"{name}_p_holm": estimate.p_holm,
    }
    return {key: value for key, value in found.items() if value is not None}
