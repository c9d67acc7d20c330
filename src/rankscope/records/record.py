"""The base of every stored result, and the words they share."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

SCHEMA_VERSION = 1
BASE = "base"  # Used in place of a trial id for the untuned base model

Split = Literal["validation", "test"]
Role = Literal["in_domain", "cross_domain", "retention"]
Status = Literal["planned", "trained", "done", "diverged", "oom", "failed", "skipped"]
WAITING: frozenset[Status] = frozenset({"planned", "trained"})
FAILED: frozenset[Status] = frozenset({"diverged", "oom", "failed"})
OVER_BUDGET = "the budget of the study was spent"
"""Reason why a search never began a trial that its answer asked for."""


class Record(BaseModel):
    """Base class of stored results: frozen, versioned, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION

    @model_validator(mode="before")
    @classmethod
    def check_integers(cls, values: Any) -> Any:
        """Refuse integers of more than 64 bits, which no arithmetic with floats can take."""
        for value in values.values() if isinstance(values, dict) else ():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError("an integer of more than 64 bits")
        return values


class AnalysisRecord(Record):
    """Base class of an analysis's findings on one trial, or on one given model."""

    trial_id: str
    seconds: float


class Estimate(Record):
    """A number with its uncertainty."""

    value: float
    low: float | None  # Lower end of the 95 % interval; None if it cannot be estimated
    high: float | None
    n: int  # Items
    seeds: int
    item_error: float | None = None  # Standard error due to the choice of items
    seed_error: float | None = None
    """Standard error due to the choice of seeds; None with one seed. It is too large with two
    similar seeds, because part of the answers' noise stays in it (``advise.statistics``)."""

    def __neg__(self) -> "Estimate":
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))
        return self.model_copy(update={"value": 0.0 - self.value, "low": low, "high": high})

    @property
    def is_clear_of_zero(self) -> bool:
        """Whether the 95 % interval is known and excludes zero."""
        return self.is_above(0) or self.is_below(0)

    def is_above(self, value: float) -> bool:
        """Whether the 95 % interval is known and above ``value``."""
        return self.low is not None and self.low > value

    def is_below(self, value: float) -> bool:
        return self.high is not None and self.high < value
