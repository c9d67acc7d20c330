"""The most that an adaptive study spends."""

import re
from typing import Any, Self

from pydantic import Field, model_validator

from rankscope.config.section import ConfigSection


class BudgetConfig(ConfigSection):
    """The most that an adaptive study spends; a text is a short form: ``24 trials``, ``5e6 tokens``,
    ``12 hours``."""

    trials: int | None = Field(None, ge=1)
    """Trials that begin."""
    tokens: float | None = Field(None, gt=0)
    """Training tokens of all trials; one begins only if the whole of it fits."""
    hours: float | None = Field(None, gt=0)
    """Wall time. When it is over, no further trial begins; those that have begun are finished."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any] | None:
        match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?(trial|token|hour)s?", text.strip())
        if match is None:
            return None
        kind = f"{match[2]}s"
        return {kind: int(match[1]) if kind == "trials" and match[1].isdecimal() else float(match[1])}

    def pays_for(self, trials: int, tokens: float) -> bool:
        """Whether that many trials of that many tokens together are within the budget."""
        if self.trials is not None and trials > self.trials:
            return False
        return self.tokens is None or tokens <= self.tokens

    @model_validator(mode="after")
    def check_not_empty(self) -> Self:
        if self.trials is None and self.tokens is None and self.hours is None:
            raise ValueError("expected one of 'trials', 'tokens' and 'hours', or a text: 24 trials")
        return self
