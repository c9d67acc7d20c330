"""Print results to standard output, and everything else to standard error.

Nothing that is printed can steer the terminal: control characters of paths, data and messages are
replaced on their way out, whoever prints them. Rankscope's own text passes through two consoles,
what libraries print through :class:`HarmlessStream`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TextIO, cast

from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    RenderableType,
    RenderHook,
    RenderResult,
)
from rich.segment import Segment
from rich.text import Text

from rankscope.formatting import safe_text, shortened_lines, terminal_text


@dataclass(frozen=True, slots=True)
class Reply:
    """What a verb found out."""

    data: Any  # For ``--json``: records, paths and plain values
    show: Callable[[], object]  # Prints the same for people
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class _Harmless:
    """A renderable without control characters of its own; rich's colors come after it."""

    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            text = safe_text(segment.text, len(segment.text))
            yield segment if segment.control else Segment(text, segment.style)


class _HarmlessText(RenderHook):
    """Makes everything harmless that a console prints."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Harmless(renderable) for renderable in renderables]


out_console, err_console = Console(), Console(stderr=True)
out_console.push_render_hook(_HarmlessText())
err_console.push_render_hook(_HarmlessText())


class HarmlessStream:
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


def protect_terminal() -> None:
    """Let everything that this process prints from now on pass through one of the two ways."""
    sys.stdout, sys.stderr = (cast(TextIO, HarmlessStream(f)) for f in (sys.stdout, sys.stderr))


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
    """Print text that is not a result, to standard error, if that takes any: it may be a file on a
    full disk."""
    with suppress(OSError):
        _print(err_console, text, style)


def _print(where: Console, text: str, style: str | None) -> None:
    shown = shortened_lines(text)
    where.print(shown, markup=False, highlight=False, soft_wrap=True, style=style)


def note_lines(notes: Sequence[str]) -> list[RenderableType]:
    """Notes below a table, after an empty line."""
    lines = [Text(f"note: {terminal_text(note)}", style="yellow") for note in notes]
    return [Text(), *lines] if lines else []
