"""A table for a terminal of eighty columns; needs no pandas."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rankscope.formatting import terminal_text
from rankscope.report.columns import Column, number_text, shown_rows

MAX_CELL = 300  # Longest text of a cell, in characters
MAX_ROWS = 200


def terminal_table(
    rows: Sequence[Mapping[str, object]],
    title: str,
    columns: Mapping[str, Column] = MappingProxyType({}),
    *,
    right: Collection[str] = (),
    sections: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> Table:
    """A table in which numbers never break and words fold; None is unknown. Of many rows it shows
    the first ``MAX_ROWS``.

    Args:
        columns: how people read the columns, by name.
        right: titles of further columns to treat like numbers.
        sections: leading columns whose repeated values are left blank.
        styles: one per row, or none at all.
    """
    read, digits = shown_rows(rows, columns)
    table = Table(
        title=Text(terminal_text(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    if (more := len(read) - MAX_ROWS) > 0:
        read = read[:MAX_ROWS]
        table.caption = Text(f"and {more:,} more; --json lists all")
        table.caption_justify = "left"
    headings = list(dict.fromkeys(heading for row in read for heading in row))
    for heading in headings:
        known = [row[heading] for row in read if row.get(heading) is not None]
        if heading in right or (known and not any(isinstance(cell, str) for cell in known)):
            table.add_column(Text(heading), justify="right", no_wrap=True)
        else:
            table.add_column(Text(heading), overflow="fold")
    before: list[str] = []
    for position, row in enumerate(read):
        cells = [_cell(row.get(heading), heading, digits) for heading in headings]
        group = cells[: len(sections)]
        if before and group[:1] != before[:1]:
            table.add_section()
        shown = [""] * len(group) + cells[len(group) :] if group == before else cells
        table.add_row(*map(Text, shown), style=styles[position] if styles else None)
        before = group
    return table


def _cell(value: object, heading: str, digits: Mapping[str, int]) -> str:
    if isinstance(value, float | int | None):
        return number_text(value, heading, digits.get(heading))
    return terminal_text(str(value), MAX_CELL)
