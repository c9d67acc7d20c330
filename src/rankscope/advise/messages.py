"""Sentences of the advice with the numbers behind them. Each stands where it is decided.

A template is written over several lines; its line breaks count as spaces.

Formats of a ``Measured`` value in a template:

``score``             ``61.3 %``
``change``            ``+3.2 points``
``amount``            ``3.2 points``, without the sign
``reverse``           the change with its sign turned round: forgetting as a change of retention
``evidence``          interval, p value, items and seeds
``reverse_evidence``  the same for the reversed change
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.formatting import (
    Unit,
    amount,
    count,
    difference,
    evidence,
    score_text,
)
from rankscope.models.methods import get_method
from rankscope.records import (
    AdviceKind,
    AdviceMessage,
    ArmSummary,
    CheckName,
    CheckStatus,
    Estimate,
    TrustCheck,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with the unit that a sentence gives it in."""

    number: float | Estimate
    unit: Unit

    @property
    def value(self) -> float:
        return self.number.value if isinstance(self.number, Estimate) else self.number

    @property
    def seeds(self) -> int:
        """Trained models that were looked at."""
        return self.number.seeds if isinstance(self.number, Estimate) else 1

    def __format__(self, style: str) -> str:
        match style:
            case "score":
                return score_text(self.value, self.unit)
            case "change":
                return difference(self.value, self.unit)
            case "amount":
                return amount(self.value, self.unit)
            case "reverse":
                return difference(-self.value, self.unit)
        if not isinstance(self.number, Estimate):
            raise ValueError(f"{style!r}: a plain number has no evidence")
        shown = -self.number if style == "reverse_evidence" else self.number
        return evidence(shown, self.unit)


@dataclass(frozen=True, slots=True)
class Counted:
    """A number of things: ``3 seeds``."""

    value: int
    noun: str

    def __format__(self, style: str) -> str:
        return count(self.value, self.noun)


Field = str | float | Measured | Counted


def message(kind: AdviceKind, template: str, /, **fields: Field) -> AdviceMessage:
    """One sentence. The numbers of all fields are its values, whether the text uses them or not."""
    text = capitalized(_filled(template, fields))
    return AdviceMessage(kind=kind, text=text, values=_values(fields))


def trust_check(
    name: CheckName, status: CheckStatus, value: str, template: str, /, **fields: Field
) -> TrustCheck:
    """One line of "can I trust this?"."""
    text = _filled(template, fields)
    return TrustCheck(name=name, status=status, value=value, text=text, values=_values(fields))


def _filled(template: str, fields: Mapping[str, Field]) -> str:
    return " ".join(template.split()).format_map(fields)


def capitalized(text: str) -> str:
    """The text with a capital first letter, unless it begins with a symbol such as ``r=8``."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


def _values(fields: Mapping[str, Field]) -> dict[str, float]:
    values: dict[str, float] = {}
    for field, content in fields.items():
        if isinstance(content, Measured) and isinstance(content.number, Estimate):
            values |= _estimate_values(field, content.number)
        elif isinstance(content, Measured | Counted):
            values[field] = float(content.value)
        elif not isinstance(content, str):
            values[field] = float(content)
    return values


def arm_name(arm: ArmSummary) -> str:
    """Method and settings of an arm: ``LoRA r=32 (alpha 64, lr 0.0002, dropout=0.1)``."""
    rate = ", ".join([f"lr {arm.lr:g}" if arm.lr else "rate not known", *arm.special_settings])
    if arm.is_full:
        return f"full fine-tuning ({rate})"
    if arm.alpha is None:  # the label of a PEFT method already lists its settings
        return arm.label
    return f"{get_method(arm.method).label} r={arm.rank} (alpha {arm.alpha:g}, {rate})"


def verdict_name(arm: ArmSummary) -> str:
    """The arm in a few words: ``LoRA r=32``, ``full fine-tuning``, ``vera``."""
    if arm.is_full:
        return "full fine-tuning"
    return arm.short_label if arm.alpha is None else f"{get_method(arm.method).label} r={arm.rank}"


def _estimate_values(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as plain numbers: ``name``, ``name_low``, ``name_p``, ``name_error``, ``n``..."""
    numbers = {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_p": estimate.p,
        "n": float(estimate.n),
        "seeds": float(estimate.seeds),
        f"{name}_error": estimate.standard_error,
        f"{name}_p_holm": estimate.p_holm,
    }
    return {key: value for key, value in numbers.items() if value is not None}
