"""The command line as a user meets it, in this process: exit code, and what it printed where."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.cli import app, exit_code_of


@dataclass(frozen=True)
class Outcome:
    """What one command came to."""

    code: int
    out: str
    """Standard output."""
    err: str
    """Standard error."""

    @property
    def told(self) -> str:
        """All that was printed, with white space as single spaces: where lines break is no news."""
        return " ".join((self.out + " " + self.err).split())


def rankscope(*words: object) -> Outcome:
    """Run ``rankscope WORDS`` here; a bug passes through as its exception."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code_of(lambda: app([str(word) for word in words], prog_name="rankscope"))
    return Outcome(code, out.getvalue(), err.getvalue())


def settings(*values: str) -> list[str]:
    """``--set VALUE`` for each value."""
    return [word for value in values for word in ("--set", value)]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON lines; a text or bytes is a line as it is."""
    lines = [
        row
        if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def files_below(folder: Path) -> set[str]:
    """Every file and folder below, relative."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
