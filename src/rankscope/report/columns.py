"""Columns of tables: their names for programs, and the titles that people read.

A table has names of Python (``lr``, ``gain_low``), booleans, shares of 1 or nats per token, seconds
and bytes. Memory, CSV and Parquet hold these. Terminal, page, Markdown and LaTeX show titles, units
and rounded numbers, each cell by its ``Column``. The command line needs this module, so it does not
import pandas.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rankscope.formatting import NATS, POINTS, Unit, number, percent

Cell = str | float | int | None
ENDS = ("low", "high", "smallest", "largest")
PROBABILITY = Unit(1.0, "", "", 2)
"""Unit of probabilities, which read ``96 %``, and above 0.99 ``over 99 %``. Columns of a study's
frames have no ``text`` in its place: pandas stores no functions in Parquet."""


class Column(NamedTuple):
    """The way people read a column."""

    title: str = ""  # If empty, the name: a Python name with spaces, others as they are
    unit: Unit | None = None  # Its scale multiplies the values, its digits follow the point
    digits: int | None = None  # Other digits than the unit's; three significant ones without either
    unit_from: str = ""
    """Name of the column with each row's score unit, if rows differ: ``accuracy`` (points) or
    ``log_probability`` (nats)."""
    words: Mapping[str, str] | None = None  # Words shown in place of texts
    text: Callable[[Any], str] | None = None  # What is shown for a known number, in its unit
    ends: tuple[str, ...] = ()  # Columns of its 95 % interval; ``read_columns`` finds them

    @property
    def places(self) -> int | None:
        """Number of digits after the point."""
        return self.unit.digits if self.digits is None and self.unit else self.digits

    def shown(self, value: object, row: Mapping[str, object]) -> Any:
        """Convert a cell of a row to its unit, or to words; numbers stay numbers."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str):
            return (self.words or {}).get(value, value)
        of_row = POINTS if self.unit_from and row[self.unit_from] == "accuracy" else NATS
        unit = of_row if self.unit_from else self.unit
        return value * unit.scale if unit and isinstance(value, int | float) else value

    def number(self, value: float | None) -> str:
        """Write a number that is in its unit."""
        text = percent if self.unit == PROBABILITY else self.text
        return number(value, self.places) if value is None or text is None else text(value)


def read_columns(names: Iterable[str], known: Mapping[str, Column]) -> dict[str, Column]:
    """Give every column its title and its interval, by name.

    ``x_low`` and ``x_high``, the ends of the interval of ``x``, are read like ``x``, with ", low"
    and ", high" after its title. ``x_smallest`` and ``x_largest`` are read likewise. Columns that
    were read before stay as they are, but one that lost an end of its interval has none.
    """
    names, read = dict.fromkeys(names), dict[str, Column]()
    wholes = dict.fromkeys([*names, *known])
    ends = {f"{whole}_{end}": (whole, end) for whole in wholes for end in ENDS}
    for name in names:
        # A task may be called x_largest.
        whole, end = (name, "") if name in known else ends.get(name, (name, ""))
        column, spaced = known.get(whole, Column()), whole.replace("_", " ")
        plain = spaced if whole.isidentifier() and spaced not in names else whole
        title = (column.title or plain) + (end and f", {end}")
        own = (f"{name}_low", f"{name}_high")
        has_ends = {*own} <= names.keys() - known.keys()
        kept = column.ends if not end and {*column.ends} <= names.keys() else ()
        read[name] = column._replace(title=title, ends=own if has_ends else kept)
    return read


def interval_cells(name: str, estimate: object) -> dict[str, float | None]:
    """Return an estimate, or None, as three cells: ``x``, ``x_low`` and ``x_high``."""
    ends = {f"{name}_{end}": getattr(estimate, end, None) for end in ENDS[:2]}
    return {name: getattr(estimate, "value", None), **ends}
