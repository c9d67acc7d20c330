"""Errors that a user can act on, each with the exit code of the command line.

A message names the place, what was found, what was expected and what to do. Any other exception is
a bug in Rankscope. docs/exit-codes.md says what a script can do about each code.
"""

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rankscope.formatting import shortened_lines

OK = 0
BUG = 1
BAD_INPUT = 2
UNFINISHED = 3
INTEGRITY = 4
INTERRUPTED = 130

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, and what a scheduler or a closed terminal sends: the command ends with INTERRUPTED."""
MAX_FAULTS = 5
"""Most faults of one record that a message lists."""

PARTS = {
    "where": re.compile(r"((?:(?!\. )[^\n])+?): "),
    "found": re.compile(r".*?\bfound (.+?)(?:,? expected\b|; |\. |\.?$)"),
    "expected": re.compile(r".*?\b[Ee]xpected (.+?)(?:; |\. |\.?$)"),
    "do": re.compile(r".*?; (?!expected)(.+?)\.?$"),
}
"""The form of messages: ``where: found X, expected Y; do Z``; any part may be missing."""


class RankscopeError(Exception):
    """Base of every error Rankscope raises on purpose. Long lines are cut in their middle."""

    exit_code = BUG

    def __init__(self, message: str) -> None:
        super().__init__(shortened_lines(message))

    def description(self) -> dict[str, object]:
        """The error for ``--json``; a part that its first line does not show is None."""
        first_line = re.sub(r" \([^()]*\)", "", str(self).partition("\n")[0])
        matches = {name: form.match(first_line) for name, form in PARTS.items()}
        parts = {name: match[1] if match else None for name, match in matches.items()}
        kind = type(self).__name__
        return {"kind": kind, "message": str(self), **parts, "exit_code": self.exit_code}


class UserError(RankscopeError):
    """A study file, data row, model folder or argument cannot be used as it is (exit code 2)."""

    exit_code = BAD_INPUT


class IntegrityError(RankscopeError):
    """A stored artifact is not what was written: missing, altered or not finite (exit code 4)."""

    exit_code = INTEGRITY


class NotFiniteError(IntegrityError):
    """A model's log-probabilities are not finite, so it cannot be scored (exit code 4)."""


class StudyLocked(UserError):
    """Another process is running this study (exit code 2)."""


class DiskFull(RankscopeError):
    """No space to write; the previous state is kept (exit code 3)."""

    exit_code = UNFINISHED


class DiskFailed(RankscopeError):
    """The disk reports an error; the previous state is kept (exit code 3)."""

    exit_code = UNFINISHED


class OutOfMemory(RankscopeError):
    """Memory ran out where no smaller piece of work can be tried (exit code 3)."""

    exit_code = UNFINISHED


class Interrupted(RankscopeError):
    """A stop was requested; the same command continues (exit code 130)."""

    exit_code = INTERRUPTED


@contextmanager
def reading(
    place: object, expected: str, refuse: type[RankscopeError] = UserError, do: str = ""
) -> Iterator[None]:
    """Raise one message for whatever a library raises on data from outside.

    Wrap only the library's call: a bug of Rankscope inside would read as a fault of the data.
    Rankscope's own errors and a lack of memory pass through.
    """
    try:
        yield
    except (RankscopeError, MemoryError):
        raise
    except Exception as error:
        remedy = f"; {do}" if do else ""
        raise refuse(f"{place}: not {expected}: {reason_of(error)}{remedy}") from error


def reason_of(error: BaseException) -> str:
    """What is wrong with data, from what a library raised on it, in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    if isinstance(error, UnicodeEncodeError):
        return "a lone surrogate (\\ud800 to \\udfff), which is not a character"
    if isinstance(error, KeyError):
        return f"there is no {first_line(error)}"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "an integer of more than 4,300 digits"
    faults = getattr(error, "errors", None)  # of Pydantic
    if callable(faults):
        shown = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in faults()
        ]
        more = ["..."] if len(shown) > MAX_FAULTS else []
        return "; ".join([fault.removeprefix(": ") for fault in shown[:MAX_FAULTS]] + more)
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, and the next if it ends in a colon; its type if empty."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """``; did you mean 'rank'?`` if a known word is similar, else empty."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.55)
    return f"; did you mean {close[0]!r}?" if close else ""
