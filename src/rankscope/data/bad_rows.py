"""Rows that cannot be used: all of a task at once, refused or dropped, and what is said of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rankscope.data.rows import BadRow, NoCompletion
from rankscope.data.sources import RawRow
from rankscope.errors import UserError
from rankscope.formatting import count

MAX_SHARE_WITHOUT_COMPLETION = 0.01
"""Of the user's own rows: this share, or one row, may lack its completion, and is dropped."""
MAX_PUBLISHED_SHARE = 0.1
"""Of the rows of a named task: more bad rows are a wrong file, not flaws of the data set."""
MAX_REASON = 300  # Longest reason shown for a bad row, in characters: it can quote a cell
MAX_SHOWN = 20
MAX_SHOWN_IN_NOTE = 3

Policy = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    location: str
    number: int
    reason: str
    lacks_completion: bool = False

    @classmethod
    def of(cls, row: RawRow, error: BadRow) -> "RejectedRow":
        reason = str(error)[:MAX_REASON]
        return cls(row.location, row.number, reason, isinstance(error, NoCompletion))

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RowPolicy:
    task: str
    policy: Policy | None
    """``on_bad_rows`` of the study file; None refuses own rows, and drops published ones."""
    own_data: bool

    @property
    def refuses(self) -> bool:
        return self.policy == "refuse" or (self.policy is None and self.own_data)

    def check(self, rejected: Sequence[RejectedRow], num_rows: int) -> None:
        """Raise UserError, with every reason up to a limit, unless these rows may be dropped."""
        if not rejected or (self.policy == "drop" and len(rejected) < num_rows):
            return
        if self.refuses:
            limit = min(max(1, MAX_SHARE_WITHOUT_COMPLETION * num_rows), num_rows - 1)
            if len(rejected) <= limit and all(row.lacks_completion for row in rejected):
                return
        elif self.policy is None and len(rejected) <= MAX_PUBLISHED_SHARE * num_rows:
            return
        shown = [f"  {row}" for row in rejected[:MAX_SHOWN]]
        more = len(rejected) - len(shown)
        remedy = (
            "No row is left. Correct them."
            if self.policy == "drop"
            else "Correct them, or leave them out with 'on_bad_rows: drop' in the task; dropped "
            "rows are counted in every record."
        )
        raise UserError(
            "\n".join(
                [
                    f"task {self.task!r}: {len(rejected):,} of {count(num_rows, 'row')} cannot be "
                    "used:",
                    *shown,
                    *([f"  ... and {more:,} more"] if more > 0 else []),
                    remedy,
                ]
            )
        )

    def note(self, rejected: Sequence[RejectedRow], num_rows: int) -> str:
        shown = "; ".join(map(str, rejected[:MAX_SHOWN_IN_NOTE]))
        more = len(rejected) - MAX_SHOWN_IN_NOTE
        return (
            f"{self.task}: {len(rejected):,} of {count(num_rows, 'row')} were dropped: {shown}"
            + (f"; and {more:,} more" if more > 0 else "")
        )
