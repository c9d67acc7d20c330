"""How the report writes numbers and text, and which colour stands for which arm.

Every colour is a pair (light page, dark page). Figures are built with the light one; the page swaps
them when the reader's system is dark, so an arm has one colour per mode everywhere.
"""

import math
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from plotly.colors import sample_colorscale

from rankscope.records import Estimate

MINUS = "\N{MINUS SIGN}"
UNKNOWN = "\N{EN DASH}"
MAX_TEXT = 4000
"""Longest text of any one value shown, characters."""
MAX_NAME = 60
"""Longest name shown in a figure, characters."""


class Color(NamedTuple):
    """One colour in its two modes, as CSS text."""

    light: str
    dark: str


INK = Color("#1c2024", "#e8eaed")
MUTED = Color("#626b76", "#9aa3ad")
GRID = Color("#e6e8eb", "#2c3138")
SURFACE = Color("#fefefe", "#16191d")
FULL = Color("#d2521b", "#ff8a57")
BASE = Color("#5c6670", "#a7b0ba")
WORSE = Color("#b35806", "#c4741d")
NEUTRAL = Color("#f4f4f5", "#262b31")
BETTER = Color("#2160a8", "#3f83d0")
NONE_YET = Color("#f1f3f5", "#20252b")
MANY = Color("#5b2a86", "#d3a4ff")
_FIXED = (INK, MUTED, GRID, SURFACE, FULL, BASE, WORSE, NEUTRAL, BETTER, NONE_YET, MANY)

# Viridis without the end that vanishes on the page: yellow on white, violet on black.
_VIRIDIS_LIGHT = (0.0, 0.76)
_VIRIDIS_DARK = (0.34, 1.0)

_BIDIRECTIONAL = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "diamond", "triangle-up", "pentagon", "triangle-down")


def rank_colors(ranks: Iterable[int]) -> dict[int, Color]:
    """Rank -> colour on a perceptual scale over log2(rank), smallest rank darkest on white."""
    ordered = sorted(set(ranks))
    if not ordered:
        return {}
    span = math.log2(ordered[-1] / ordered[0]) or 1.0
    places = [math.log2(r / ordered[0]) / span if len(ordered) > 1 else 0.5 for r in ordered]
    light, dark = (
        sample_colorscale("Viridis", [low + (high - low) * p for p in places])
        for low, high in (_VIRIDIS_LIGHT, _VIRIDIS_DARK)
    )
    pairs = zip(light, dark, strict=True)
    return {rank: Color(*pair) for rank, pair in zip(ordered, pairs, strict=True)}


def faded(color: str, opacity: float = 0.14) -> str:
    """The same colour, translucent: for bands. Takes ``#rrggbb`` or ``rgb(r, g, b)``."""
    if color.startswith("#"):
        channels = ", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    else:
        channels = color[color.index("(") + 1 : color.index(")")]
    return f"rgba({channels}, {opacity})"


def dark_colors(ranks: Iterable[int]) -> dict[str, str]:
    """Every colour the figures use, light -> dark, translucent forms too."""
    pairs = [*_FIXED, *rank_colors(ranks).values()]
    solid = {pair.light: pair.dark for pair in pairs}
    return solid | {faded(light): faded(dark) for light, dark in solid.items()}


class Unit(NamedTuple):
    """How a task's scores and differences are written."""

    scale: float
    score: str
    """Unit of a score."""
    difference: str
    """Unit of a difference of two scores."""
    digits: int


POINTS = Unit(100.0, "%", "points", 1)
"""Accuracy: shares of 1 as per cent, differences in percentage points."""
NATS = Unit(1.0, "nats per token", "nats per token", 3)
"""Mean log probability."""


def visible(text: object, limit: int = MAX_TEXT) -> str:
    """Text from data, cut to ``limit`` characters, with invisible controls spelled out.

    Control characters and the bidirectional overrides, which reverse what stands after them, become
    their code point; line breaks and tabs stay.
    """
    whole = str(text)
    shown = "".join(
        f"[U+{ord(c):04X}]" if c in _BIDIRECTIONAL or _is_control(c) else c for c in whole[:limit]
    )
    if len(whole) <= limit:
        return shown
    return f"{shown}\N{HORIZONTAL ELLIPSIS} ({len(whole):,} characters)"


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def number(value: float | None, digits: int | None = None) -> str:
    """A number for people; ``digits`` after the point, or three significant ones."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if digits is not None:
        return f"{value:,.{digits}f}".replace("-", MINUS)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def signed(value: float, unit: Unit) -> str:
    """A difference with its sign, without its unit, such as ``+3.2``."""
    scaled = round(value * unit.scale, unit.digits) + 0.0
    return f"{scaled:+.{unit.digits}f}".replace("-", MINUS)


def difference(value: float, unit: Unit) -> str:
    """A difference with sign and unit, such as ``+3.2 points``."""
    return f"{signed(value, unit)} {unit.difference}"


def score(value: float, unit: Unit) -> str:
    """A score with its unit, such as ``61.3 %``."""
    return f"{number(value * unit.scale, unit.digits)} {unit.score}"


def interval(estimate: Estimate, unit: Unit) -> str:
    """The 95 % interval of a difference, or that it is unknown."""
    if estimate.low is None or estimate.high is None:
        return "interval unknown"
    return f"95 % interval {signed(estimate.low, unit)} to {signed(estimate.high, unit)}"


def plus_minus(estimate: Estimate | None, unit: Unit, *, sign: bool = False) -> str:
    """Value and half-width of its interval, such as ``61.3 ±1.2``."""
    if estimate is None:
        return UNKNOWN
    value = (
        signed(estimate.value, unit) if sign else number(estimate.value * unit.scale, unit.digits)
    )
    if estimate.low is None or estimate.high is None:
        return f"{value} ±?"
    half = (estimate.high - estimate.low) / 2 * unit.scale
    return f"{value} ±{half:.{unit.digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def clock(seconds: float | None) -> str:
    """Seconds as ``0:48``, ``3:20`` or ``2:05:00``."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def compact(n: int) -> str:
    """A count in thousands, millions or billions from 10,000 on: ``8,192``, ``54.5 M``."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= max(size, 10_000):
            return f"{n / size:.3g} {letter}"
    return f"{n:,}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """``1 trial``, ``3 trials``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listing(names: Iterable[str], most: int = 6) -> str:
    """Names joined for a sentence, with a count of those left out."""
    ordered = list(names)
    if len(ordered) > most:
        return ", ".join(ordered[:most]) + f" and {len(ordered) - most} more"
    if len(ordered) < 2:
        return "".join(ordered)
    return ", ".join(ordered[:-1]) + " and " + ordered[-1]
