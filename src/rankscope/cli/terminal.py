"""Print results to standard output, and everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text

from rankscope.formatting import safe_text, terminal_text

if TYPE_CHECKING:  # pydantic would slow down ``--help``
    from pydantic import BaseModel

out_console = Console()
err_console = Console(stderr=True)
MAX_LINE = 20_000
"""Longest text printed as a line, in characters: an error can quote data."""


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_result(result: RenderableType) -> None:
    """Print a table or another rich renderable."""
    out_console.print(result)


def print_record(
    record: BaseModel, render: Callable[[Any], RenderableType], *, as_json: bool
) -> None:
    """Print a record as JSON, or as what ``render`` makes of it."""
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_result(render(record))


def print_line(text: str, style: str | None = None) -> None:
    """Print text without markup; a line is not wrapped, so that paths can be copied."""
    _print(out_console, text, style)


def print_message(text: str, style: str | None = None) -> None:
    """Print text that is not a result, to standard error."""
    _print(err_console, text, style)


def _print(console: Console, text: str, style: str | None) -> None:
    shown = safe_text(text, MAX_LINE)
    console.print(shown, markup=False, highlight=False, soft_wrap=True, style=style)


def note_lines(notes: Sequence[str]) -> list[RenderableType]:
    """Notes below a table, after an empty line."""
    lines = [Text(f"note: {terminal_text(note)}", style="yellow") for note in notes]
    return [Text(), *lines] if lines else []
