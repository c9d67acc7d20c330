"""The most that an adaptive study spends."""

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rankscope.config.section import ConfigSection, short_repr


class BudgetConfig(ConfigSection):
    """At least one limit; a text is a short form: ``24 trials``, ``5e6 tokens``, ``12 hours``."""

    trials: int | None = Field(None, ge=1)
    """Trials that begin."""
    tokens: float | None = Field(None, gt=0)
    """Training tokens of all trials; one begins only if the whole of it fits."""
    hours: float | None = Field(None, gt=0)
    """Wall time. When it is over, no seed after an arm's first begins. First seeds are trained to
    their end, unless a rung stops them, and trials that have begun are finished."""

    @model_validator(mode="after")
    def check_not_empty(self) -> Self:
        if self.trials is None and self.tokens is None and self.hours is None:
            raise ValueError(
                "expected 'trials', 'tokens' or 'hours', or a text such as '24 trials'"
            )
        return self

    @property
    def text(self) -> str:
        """All limits, such as ``24 trials, 12 hours``."""
        limits = {"trials": self.trials, "tokens": self.tokens, "hours": self.hours}
        return ", ".join(f"{n:,.12g} {name}" for name, n in limits.items() if n is not None)

    def pays_for(self, trials: int, tokens: float) -> bool:
        """Whether that many trials of that many tokens together are within the budget."""
        if self.trials is not None and trials > self.trials:
            return False
        return self.tokens is None or tokens <= self.tokens


def _parse_budget(value: Any) -> Any:
    """A mapping as it is; a text with its unit as a mapping. A number has no unit."""
    if not isinstance(value, str | int | float):
        return value
    match = re.fullmatch(
        r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) ?(trial|token|hour)s?", str(value).strip()
    )
    if match is None:
        raise ValueError(
            f"found {short_repr(value)}, expected a text such as '24 trials', '5e6 tokens' or "
            "'12 hours'"
        )
    is_count = match[2] == "trial" and match[1].isdecimal()
    return {f"{match[2]}s": int(match[1]) if is_count else float(match[1])}


Budget = Annotated[
    BudgetConfig | None,
    BeforeValidator(_parse_budget, json_schema_input_type=str | BudgetConfig | None),
]
