"""Columns of tables: their names for programs, and the titles that people read.

A table has names of Python (``lr``, ``gain_low``), booleans, shares of 1 or nats per token, seconds
and bytes. Memory, CSV and Parquet hold these. Terminal, page, Markdown and LaTeX show titles, units
and rounded numbers, which ``shown_rows`` makes. The command line needs this module, so it does not
import pandas.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rankscope.formatting import NATS, POINTS, Unit, number, percent

Cell = str | float | int | None
PROBABILITIES = frozenset({"P(better)", "P(within margin)", "P(best)", "P(good enough)"})
"""Titles of columns of posterior probabilities, which end at ``over 99 %``."""


class Column(NamedTuple):
    """The way people read a column.

    It also covers ``x_low`` and ``x_high``, the 95 % interval of ``x``, with ", low" and ", high"
    after the title, and ``x_smallest`` and ``x_largest``.
    """

    title: str = ""  # If empty, the name: a Python name with spaces, others as they are
    unit: Unit | None = None  # Its scale multiplies the values, its digits follow the point
    digits: int | None = None  # Other digits than the unit's; three significant ones without either
    unit_from: str = ""
    """Name of the column with each row's score unit, if rows differ: ``accuracy`` (points) or
    ``log_probability`` (nats)."""
    words: Mapping[str, str] | None = None  # Words shown in place of texts
    sign: bool = False  # On a terminal, whether numbers above zero have a plus sign
    text: Callable[[Any], str] | None = None  # On a terminal, what is shown for a known value

    @property
    def places(self) -> int | None:
        """Number of digits after the point."""
        return self.unit.digits if self.digits is None and self.unit else self.digits


def shown_rows(
    rows: Sequence[Mapping[str, object]], columns: Mapping[str, Column]
) -> tuple[list[dict[str, object]], dict[str, int]]:
    """Translate rows for people: return them by title, and the digits after the point by title."""
    names = dict.fromkeys(name for row in rows for name in row)
    read: dict[str, tuple[str, Column]] = {}
    for name in names:
        value, _, end = name.rpartition("_")
        is_end = (end in ("low", "high") and value in names) or end in ("smallest", "largest")
        is_end = is_end and name not in columns  # a task may be called x_largest
        whole, ending = (value, f", {end}") if is_end else (name, "")
        column = columns.get(whole, Column())
        spaced = whole.replace("_", " ")
        plain = spaced if whole.isidentifier() and spaced not in names else whole
        read[name] = (column.title or plain) + ending, column
    shown = [
        {read[n][0]: _shown(value, row, read[n][1]) for n, value in row.items()} for row in rows
    ]
    return shown, {title: c.places for title, c in read.values() if c.places is not None}


def number_text(value: float | None, title: str, digits: int | None = None) -> str:
    """Write a number in the column ``title``."""
    if value is not None and title in PROBABILITIES:
        return percent(value)
    return number(value, digits)


def _shown(value: object, row: Mapping[str, object], column: Column) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return (column.words or {}).get(value, value)
    unit = column.unit
    if column.unit_from:
        unit = POINTS if row[column.unit_from] == "accuracy" else NATS
    return value * unit.scale if unit and isinstance(value, int | float) else value
