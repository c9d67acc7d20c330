"""Output: results go to standard output, and everything else to standard error.

No printed text can steer the terminal. Control characters of paths, data and messages are replaced
on their way out, whoever prints them. Rankscope's own text passes through two consoles, the text of
libraries through :class:`_HarmlessStream`. A reader that goes away ends no study.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from rankscope.formatting import number, safe_text, shortened_lines, terminal_text
from rankscope.report.columns import Column, read_columns

if TYPE_CHECKING:
    import pandas as pd

MAX_CELL = 300  # Longest text of a table's cell, in characters
MAX_HEADING = 9  # Longest heading of numbers that stays on one line, in characters
MAX_ROWS = 200  # Most rows of a table


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a verb."""

    data: Any  # For ``--json``: records, paths and plain values
    show: Callable[[], object]  # Prints the same for people
    exit_code: int = 0


class _HarmlessConsole(Console):
    """A console that replaces control characters in its content; its own colors are added later."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            text = safe_text(segment.text, len(segment.text))
            yield segment if segment.control else Segment(text, segment.style)


out_console, err_console = _HarmlessConsole(), _HarmlessConsole(stderr=True)


class _HarmlessStream:
    """A text stream without control characters, for warnings, logs, questions and tracebacks.

    Progress bars of libraries may still return to the beginning of a line and go up one line.
    """

    moves = re.compile(r"(\r|\x1b\[A)")

    def __init__(self, inner: TextIO) -> None:
        self.rich_proxied_file = inner  # what rich's consoles write to, with colors

    def write(self, text: str) -> int:
        parts = self.moves.split(text)
        parts[::2] = [safe_text(part, len(part)) for part in parts[::2]]
        self.rich_proxied_file.write("".join(parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _PatientStream:
    """A standard stream that outlives its reader: a closed pipe or terminal takes no more text.

    Any other error, such as a full disk, is raised only if the text ``must_arrive``.
    """

    def __init__(self, inner: TextIO, *, must_arrive: bool) -> None:
        self.inner, self.must_arrive = inner, must_arrive

    def write(self, text: str) -> int:
        self._attempt(lambda: self.inner.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.inner.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            number = self.inner.fileno()
            is_terminal = stat.S_ISCHR(os.fstat(number).st_mode)  # isatty denies a closed one
            if error.errno == errno.EPIPE or (error.errno == errno.EIO and is_terminal):
                discard(self.inner)
            elif self.must_arrive:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def discard(stream: TextIO) -> None:
    """Let a stream's file be /dev/null from now on, also for buffered text."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def protect_terminal() -> None:
    """Let everything that this process prints from now on pass through one of the two ways."""
    # A file that is opened later would get the number of a closed stream, and its output.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed as Python began
            mode = "r" if name == "stdin" else "w"
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8"))
        if name != "stdin":
            patient = _PatientStream(getattr(sys, name), must_arrive=name == "stdout")
            setattr(sys, name, _HarmlessStream(cast(TextIO, patient)))


def print_json(value: object) -> None:
    """Print one JSON document; characters beyond ASCII are escaped."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def print_result(result: RenderableType) -> None:
    out_console.print(result)


def print_line(text: str, style: str | None = None) -> None:
    """Print text without markup; a line is not wrapped, so that paths can be copied."""
    _print(out_console, text, style)


def print_message(text: str, style: str | None = None) -> None:
    """Print text that is not a result, to standard error."""
    _print(err_console, text, style)


def _print(where: Console, text: str, style: str | None) -> None:
    shown = shortened_lines(text)
    where.print(shown, markup=False, highlight=False, soft_wrap=True, style=style)


def folded(text: str, style: str = "") -> Text:
    """Return text from anywhere, which breaks at the end of the terminal."""
    return Text(terminal_text(text), style, overflow="fold")


def note_lines(notes: Sequence[str]) -> list[RenderableType]:
    """Return notes below a table, after an empty line."""
    lines = [folded(f"note: {note}") for note in notes]
    return [Text(), *lines] if lines else []


def terminal_table(
    rows: Sequence[Mapping[str, Any]] | pd.DataFrame,
    title: str,
    columns: Mapping[str, Column] = MappingProxyType({}),
    names: Sequence[str] = (),
    *,
    sections: int = 0,
    styles: Sequence[str] = (),
) -> Table:
    """Make a table of eighty columns, in which numbers never break and words fold.

    An interval is half its width, ``3.1 ±2.1``; None is unknown. Rows that are no frame need no
    pandas.

    Args:
        columns: how people read the columns of rows; a frame has its own.
        names: the columns shown, in order; all of them by default.
        sections: number of leading columns that leave repeated values blank.
        styles: one per row, or none at all.
    """
    if isinstance(rows, Sequence):
        columns = read_columns([*names, *(name for row in rows for name in row)], columns)
    else:
        from rankscope.report.table_formats import frame_rows

        columns = read_columns(rows.columns, rows.attrs.get("columns", {}))
        rows = [dict(zip(columns, row, strict=True)) for row in frame_rows(rows)]
    ends = {end for column in columns.values() for end in column.ends}
    names = names or [name for name in columns if name not in ends]
    table = Table(
        title=Text(terminal_text(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    if (more := len(rows) - MAX_ROWS) > 0:
        table.caption = Text(f"and {more:,} more; --json lists all")
        table.caption_justify = "left"
    for name in names if rows else ():
        heading, column = columns[name].title, columns[name]
        cells = [row[name] for row in rows if row.get(name) is not None]
        is_text = (column.text or column.places) is None and any(isinstance(c, str) for c in cells)
        if cells and not is_text:
            heading = heading if len(heading) <= MAX_HEADING else heading.replace(" ", "\n")
            table.add_column(Text(heading), justify="right", no_wrap=True)
        else:
            table.add_column(Text(heading), overflow="fold")
    before: list[str] = []
    for position, row in enumerate(rows[:MAX_ROWS]):
        texts = [_cell(row, name, columns[name]) for name in names]
        group = texts[:sections]
        if before and group[:1] != before[:1]:
            table.add_section()
        shown = [""] * sections + texts[sections:] if group == before else texts
        table.add_row(*map(Text, shown), style=styles[position] if styles else None)
        before = group
    return table


def _cell(row: Mapping[str, Any], name: str, column: Column) -> str:
    value, *ends = (column.shown(row.get(n), row) for n in (name, *column.ends))
    if isinstance(value, str):
        return terminal_text(value, MAX_CELL)
    text = column.number(value)
    if value is None or not ends:
        return text
    half = "?" if None in ends else number((ends[1] - ends[0]) / 2, column.places)
    return f"{text} ±{half}"
