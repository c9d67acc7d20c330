"""A number with its uncertainty."""

from rankscope.records.record import Record


class Estimate(Record):
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
