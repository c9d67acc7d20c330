"""Numbers, units, durations, sizes and text in one form for terminal, report and cards."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"
MAX_TEXT = 4000  # Longest text shown for one value, in characters
MAX_LINE = 1000  # Longest line of a message, in characters: messages quote rows and paths
MAX_NAME = 60  # Longest name shown in a figure or a table, in characters

CONFIDENCES = {
    "sure": "Sure",
    "probable": "Probable",
    "leaning": "Leaning",
    "none": "Not decided",
}


class Unit(NamedTuple):
    """How to write a task's scores and their differences."""

    scale: float
    score: str  # Unit of a score
    difference: str  # Unit of a difference between two scores
    digits: int


POINTS = Unit(100.0, "%", "points", 1)
"""Accuracy: fractions shown in percent, differences in percentage points."""
NATS = Unit(1.0, "nats per token", "nats per token", 3)  # Mean log probability


def unit_of(score_unit: Literal["accuracy", "log_probability"] | None) -> Unit:
    """Return the unit of a task's scores; a metric of unknown kind keeps its plain number."""
    return POINTS if score_unit == "accuracy" else NATS


def mean_unit(score_units: Iterable[str | None]) -> Unit:
    """Return the unit of a mean over tasks: beside accuracies, 0.01 nats per token is one point."""
    return NATS if set(score_units) == {"log_probability"} else POINTS


def score_text(value: float, unit: Unit) -> str:
    """Write a score, such as ``61.3 %``."""
    return f"{number(value * unit.scale, unit.digits)} {unit.score}"


def rounded(value: float, unit: Unit) -> float:
    """Round a number as it is shown. If two are equal then, a reader sees no difference."""
    # Rounding can leave "-0.0", which reads like a loss; adding zero removes the sign.
    return round(value * unit.scale, unit.digits) + 0.0


def signed(value: float, unit: Unit) -> str:
    """Write a difference with its sign, without its unit, such as ``+3.2``."""
    return f"{rounded(value, unit):+.{unit.digits}f}".replace("-", MINUS)


def difference(value: float, unit: Unit) -> str:
    """Write a difference with its sign and unit, such as ``+3.2 points``."""
    return f"{signed(value, unit)} {unit.difference}"


def amount(value: float, unit: Unit) -> str:
    """Write a difference without its sign, such as ``3.2 points``."""
    return difference(abs(value), unit).removeprefix("+")


def brief(value: float, unit: Unit) -> str:
    """Write a difference in a line that is read at a glance: whole points from 10 points on."""
    is_large = unit == POINTS and abs(rounded(value, unit)) >= 10
    return difference(value, unit._replace(digits=0) if is_large else unit)


def margin_text(margin: float, unit: Unit) -> str:
    """Write a margin in a sentence: ``2 points``, ``0.02 nats per token``."""
    return amount(margin, unit).replace(".0 ", " ").replace("0 nats", " nats")


def percent(p: float) -> str:
    """Write a probability: ``96 %``; never ``0 %`` or ``100 %``, because no draw is certain."""
    if p > 0.99:
        return "over 99 %"
    return "under 1 %" if p < 0.01 else f"{math.floor(100 * p + 1e-9)} %"  # no more than it is


class _Estimate(Protocol):
    """A value with its 95 % interval, as in records; without an interval its ends are None."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def interval(estimate: _Estimate, unit: Unit) -> str:
    """Write the 95 % interval of a difference, or a note that it is unknown."""
    if estimate.low is None or estimate.high is None:
        return "interval unknown"
    return f"95 % interval {signed(estimate.low, unit)} to {signed(estimate.high, unit)}"


def with_interval(estimate: _Estimate, unit: Unit) -> str:
    """Write a difference and its 95 % interval for a table, such as ``+2.5 [-0.5, +5.5]``."""
    if estimate.low is None or estimate.high is None:
        return f"{signed(estimate.value, unit)} [?]"
    low, high = signed(estimate.low, unit), signed(estimate.high, unit)
    return f"{signed(estimate.value, unit)} [{low}, {high}]"


def number(value: float | None, digits: int | None = None) -> str:
    """Write a number with ``digits`` after the point, or with three significant ones."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if digits is not None:
        return f"{value:,.{digits}f}".replace("-", MINUS)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def compact(n: int) -> str:
    """Write a count in thousands, millions or billions from 10,000 on: ``8,192``, ``54.5 M``."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= max(size, 10_000):
            return f"{n / size:.3g} {letter}"
    return f"{n:,}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Write a count with its noun: ``1 trial``, ``3 trials``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def byte_size(num_bytes: float) -> str:
    """Write bytes with a decimal unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def duration(seconds: float | None) -> str:
    """Write a measured time: ``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def rough_duration(seconds: float) -> str:
    """Write an estimated time, with one unit: ``41 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def clock(seconds: float | None) -> str:
    """Write a time for a table: ``0:48``, ``3:20`` or ``2:05:00``."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# Control characters except line breaks and tabs, surrogates, and bidirectional marks and overrides.
_UNSAFE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&])|(?<![^\W_])_|_(?![^\W_])")


def join_names(names: Iterable[str], most: int = 6) -> str:
    """Join names for a sentence: ``a, b and c``; names beyond ``most`` are only counted."""
    ordered = list(names)
    if len(ordered) > most:
        return ", ".join(ordered[:most]) + f" and {len(ordered) - most} more"
    if len(ordered) < 2:
        return "".join(ordered)
    return ", ".join(ordered[:-1]) + " and " + ordered[-1]


def safe_text(text: object, limit: int = MAX_TEXT) -> str:
    """Clean text from data for a page or a file, and cut it to ``limit`` characters.

    Control characters and bidirectional overrides, which reorder the text after them, become their
    code point. Line breaks and tabs stay.
    """
    whole = str(text)
    shown = _UNSAFE.sub(lambda match: f"[U+{ord(match[0]):04X}]", whole[:limit])
    if len(whole) <= limit:
        return shown
    return f"{shown}\N{HORIZONTAL ELLIPSIS} ({len(whole):,} characters)"


def shortened_lines(text: str, limit: int = MAX_LINE) -> str:
    """Cut lines to about ``limit`` characters in their middle; their beginning and end stay."""
    return "\n".join(
        line
        if len(line) <= limit
        else f"{line[: 2 * limit // 3]} ... ({len(line):,} characters) ... {line[-limit // 3 :]}"
        for line in text.split("\n")
    )


def terminal_text(text: str, limit: int = MAX_TEXT) -> str:
    r"""Clean text so that it cannot move the cursor, reverse direction or hide itself in a
    terminal.

    Control and format characters (direction marks, zero-width characters), unassigned code points
    and letters of right-to-left scripts become ``\uXXXX``, because a terminal would reorder a row
    with them. Line breaks become ``\n``. Text beyond ``limit`` characters is cut.
    """
    shown = "".join(map(_terminal_character, text[:limit]))
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def _terminal_character(character: str) -> str:
    if character in "\n\t":
        return "\\n" if character == "\n" else "\\t"
    hides = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    if hides or unicodedata.bidirectional(character) in ("R", "AL", "AN"):
        code = ord(character)
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return character


def markdown_text(text: str, limit: int = MAX_TEXT) -> str:
    """Escape text for a Markdown table cell or its own line.

    Bare addresses, ``@name`` and ``:name:`` stay unchanged; some viewers link or replace them.
    """
    line = " ".join(safe_text(text, limit).split())
    return _MARKDOWN.sub(lambda match: "\\" + match[0], line)


def with_leading_space(prompt: str, answer: str) -> str:
    """Put a space before an answer that separates it from a plain prompt, unless there is one."""
    if prompt[-1:].isspace() or answer[:1].isspace():
        return answer
    return " " + answer
