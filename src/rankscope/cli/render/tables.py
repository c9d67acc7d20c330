"""What the screens share: a table's look, sizes, notes."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.data.preview import visible


def size(num_bytes: float) -> str:
    """Bytes with a unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def listing(title: str, headings: Sequence[str], right: frozenset[str]) -> Table:
    """An empty table that spares columns for its words: it has to read well in eighty.

    right: headings of the columns of numbers, which never break; words fold where they must.
    """
    table = Table(
        title=visible(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    for heading in headings:
        if heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


def notes_lines(notes: Sequence[str]) -> list[RenderableType]:
    """What a reader of the results must know, apart from what stands above."""
    lines = [Text(f"note: {visible(note)}", style="yellow") for note in notes]
    return [Text(), *lines] if lines else []
