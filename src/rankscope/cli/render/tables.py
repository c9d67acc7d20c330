"""What the screens share: a table's look, sizes, notes."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.formatting import terminal_text


def listing(title: str, headings: Sequence[str], right: frozenset[str]) -> Table:
    """An empty table that spares columns for its words: it has to read well in eighty.

    right: headings of the columns of numbers, which never break; words fold where they must.
    """
    table = Table(
        title=terminal_text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    for heading in headings:
        if heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


def notes_lines(notes: Sequence[str]) -> list[RenderableType]:
    """What a reader of the results must know, apart from what stands above."""
    lines = [Text(f"note: {terminal_text(note)}", style="yellow") for note in notes]
    return [Text(), *lines] if lines else []
