"""Settings of what a recommendation trades off, and of what a search may spend."""

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rankscope.config.section import ConfigSection, Unfit, short_repr


def _parse_score_difference(value: Any) -> Any:
    """Parse a text with its unit: ``2 points`` and ``2 %`` are 0.02. A number stays as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(points?|%|nats?)", value.strip())
    if match is None:
        rule = (
            "a fraction such as 0.02, or a text such as '2 points', '2 %' or, for log "
            "probabilities, '0.02 nats'"
        )
        raise Unfit(short_repr(value), rule)
    number = float(match[1])
    return number if match[2].startswith("nat") else round(number / 100, 12)


class ObjectiveConfig(ConfigSection):
    """Weights and limits by which an arm is recommended; weights are relative."""

    in_domain: float = Field(1.0, ge=0)
    """Weight of the gain on the training task."""
    retention: float = Field(1.0, ge=0)
    """Weight of forgetting: the mean drop over the retention tasks."""
    cost: float = Field(0.0, ge=0)
    """Weight of the cost of training and storing the arm."""
    margin: Annotated[
        float,
        BeforeValidator(_parse_score_difference, json_schema_input_type=float | str),
        Field(gt=0, lt=1),
    ] = 0.02
    """Two arms are equally good if their net gains differ by less: a fraction, or ``2 points``.
    One point counts as much as 0.01 nats per token, which is 1 % of perplexity."""
    max_forgetting: Annotated[
        float | None,
        BeforeValidator(_parse_score_difference, json_schema_input_type=float | str | None),
        Field(ge=0, le=1),
    ] = None
    """Do not recommend arms that probably lose more than this on retention: a fraction, or
    ``2 points``. Each training task then needs a retention task."""

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of gain and forgetting, each divided by the larger one.

        A weighted sum thereby keeps the unit of the score.
        """
        largest = max(self.in_domain, self.retention) or 1.0
        return self.in_domain / largest, self.retention / largest

    @property
    def cost_weight(self) -> float:
        """Weight of the cost, divided like ``weights``."""
        return self.cost / (max(self.in_domain, self.retention) or 1.0)

    @property
    def formula(self) -> str:
        """The formula of the net gain, such as ``gain - 0.5 x forgetting``."""
        weights = {"gain": self.in_domain, "forgetting": -self.retention, "cost": -self.cost}
        text = ""
        for name, weight in weights.items():
            factor = "" if abs(weight) == 1 else f"{abs(weight):g} x "
            text += f" {'-' if weight < 0 else '+'} {factor}{name}" if weight else ""
        return text.strip().removeprefix("+ ")

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        if self.in_domain == 0 and self.retention == 0:
            raise Unfit("'in_domain' and 'retention' both 0", "a weight above 0 for one of them")
        return self


class BudgetConfig(ConfigSection):
    """At least one limit of a search. A text is a short form: ``24 trials``, ``5e6 tokens``."""

    trials: int | None = Field(None, ge=1)
    """Number of trials that may begin."""
    tokens: float | None = Field(None, gt=0)
    """Training tokens of all trials; a trial begins only if all its tokens fit."""
    hours: float | None = Field(None, gt=0)
    """Wall time. A trial does not begin if it would end too late at the measured pace."""

    @model_validator(mode="after")
    def check_not_empty(self) -> Self:
        if self.trials is None and self.tokens is None and self.hours is None:
            raise Unfit("no limit", "'trials', 'tokens' or 'hours', or a text such as '24 trials'")
        return self

    @property
    def text(self) -> str:
        """All limits, such as ``24 trials, 12 hours``."""
        limits = {"trials": self.trials, "tokens": self.tokens}
        if self.hours is not None:
            is_short = self.hours < 2
            limits["minutes" if is_short else "hours"] = self.hours * (60 if is_short else 1)
        return ", ".join(f"{n:,.12g} {name}" for name, n in limits.items() if n is not None)

    def pays_for(self, trials: int, tokens: float) -> bool:
        """Whether that many trials, with that many tokens in all, are within the budget."""
        if self.trials is not None and trials > self.trials:
            return False
        return self.tokens is None or tokens <= self.tokens


def _parse_budget(value: Any) -> Any:
    """Turn a text with its unit into a mapping, and keep a mapping; a number lacks its unit."""
    if not isinstance(value, str | int | float):
        return value
    match = re.fullmatch(
        r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) ?(trial|token|minute|hour)s?", str(value).strip()
    )
    if match is None:
        found = short_repr(value)
        raise Unfit(found, "a text such as '24 trials', '5e6 tokens', '15 minutes' or '12 hours'")
    if match[2] == "minute":
        return {"hours": float(match[1]) / 60}
    is_count = match[2] == "trial" and match[1].isdecimal()
    return {f"{match[2]}s": int(match[1]) if is_count else float(match[1])}


Budget = Annotated[
    BudgetConfig | None,
    BeforeValidator(_parse_budget, json_schema_input_type=str | BudgetConfig | None),
]
