"""What the recommendation of a study trades off."""

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from rankscope.config.section import ConfigSection, short_repr


def _parse_score_difference(value: Any) -> Any:
    """A fraction, or a text with its unit: ``2 points`` and ``2 %`` are 0.02."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(points?|%|nats?)", value.strip())
    if match is None:
        raise ValueError(
            f"found {short_repr(value)}, expected a fraction such as 0.02, or a text such as "
            "'2 points', '2 %' or, for log probabilities, '0.02 nats'"
        )
    number = float(match[1])
    return number if match[2].startswith("nat") else round(number / 100, 12)


def _weighted_sum(weights: dict[str, float]) -> str:
    """Terms of weight 0 are left out, and a weight of 1 too."""
    terms = [
        f"{'-' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g} x '}{name}"
        for name, weight in weights.items()
        if weight
    ]
    return " ".join(terms).removeprefix("+ ")


class ObjectiveConfig(ConfigSection):
    """What the recommendation trades off; weights are relative."""

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
    """Two arms are equally good if their scores differ by less: a fraction, or ``2 points``."""
    max_forgetting: Annotated[
        float | None,
        BeforeValidator(_parse_score_difference, json_schema_input_type=float | str | None),
        Field(ge=0, le=1),
    ] = None
    """Do not recommend arms that lose more than this on retention: a fraction, or a text such as
    ``2 points``."""

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of gain and forgetting over the larger of the two, so that a weighted sum keeps
        the unit of the score."""
        largest = max(self.in_domain, self.retention) or 1.0
        return self.in_domain / largest, self.retention / largest

    @property
    def net_formula(self) -> str:
        """What a net gain is, such as ``gain - 0.5 x forgetting``."""
        return _weighted_sum({"gain": self.in_domain, "forgetting": -self.retention})

    @property
    def formula(self) -> str:
        return _weighted_sum(
            {"gain": self.in_domain, "forgetting": -self.retention, "cost": -self.cost}
        )

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        if self.in_domain == 0 and self.retention == 0:
            raise ValueError(
                "'in_domain' and 'retention' are both 0, so no arm can be chosen: give one of "
                "them a weight above 0"
            )
        return self
