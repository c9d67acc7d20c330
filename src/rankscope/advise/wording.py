"""Numbers as people read them: points for accuracy, nats per token for log probability."""

from typing import Literal

from rankscope.models.methods import get_method
from rankscope.records import ArmSummary, Estimate

Unit = Literal["accuracy", "log_probability"]


def level(value: float, unit: Unit) -> str:
    """A score: ``91.2 %`` or ``-1.234 nats per token``."""
    return f"{100 * value:.1f} %" if unit == "accuracy" else f"{value:.3f} nats per token"


def difference(value: float, unit: Unit) -> str:
    """A signed difference of scores: ``+3.1 points`` or ``-0.120 nats per token``."""
    # Rounding may leave "-0.0", which reads like a loss.
    if unit == "accuracy":
        return f"{round(100 * value, 1) + 0.0:+.1f} points"
    return f"{round(value, 3) + 0.0:+.3f} nats per token"


def amount(value: float, unit: Unit) -> str:
    """A difference without its sign: ``3.1 points``."""
    return difference(abs(value), unit).removeprefix("+")


def evidence(estimate: Estimate, unit: Unit) -> str:
    """Interval, p, items and seeds of a difference, for brackets."""
    if estimate.low is None or estimate.high is None:
        interval = "interval unknown"
    elif unit == "accuracy":
        low, high = round(100 * estimate.low, 1) + 0.0, round(100 * estimate.high, 1) + 0.0
        interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    else:
        interval = f"95 % interval {estimate.low:+.3f} to {estimate.high:+.3f}"
    parts = [interval]
    if estimate.p is not None:
        parts.append(p_value(estimate.p))
    return ", ".join([*parts, count(estimate.n, "item"), count(estimate.seeds, "seed")])


def p_value(p: float) -> str:
    """``p < 0.001`` or ``p = 0.036``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count(n: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


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
