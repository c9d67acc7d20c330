"""Colors, dashes and symbols of the report, and the arms that they stand for.

Every color is a pair (light page, dark page). Figures are built with the light one. The page swaps
them when the reader's system is dark, so an arm has one color per mode everywhere.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from plotly.colors import sample_colorscale


class Color(NamedTuple):
    """One color in its two modes, as CSS text."""

    light: str
    dark: str


INK = Color("#1c2024", "#e8eaed")
MUTED = Color("#626b76", "#9aa3ad")
GRID = Color("#e6e8eb", "#2c3138")
SURFACE = Color("#fefefe", "#16191d")
FULL_COLOR = Color("#d2521b", "#ff8a57")
BASE_COLOR = Color("#5c6670", "#a7b0ba")
WORSE = Color("#b35806", "#c4741d")
NEUTRAL = Color("#f4f4f5", "#262b31")
BETTER = Color("#2160a8", "#3f83d0")
NONE_YET = Color("#f1f3f5", "#20252b")
MANY = Color("#5b2a86", "#d3a4ff")
_FIXED = (INK, MUTED, GRID, SURFACE, FULL_COLOR, BASE_COLOR, WORSE, NEUTRAL, BETTER, NONE_YET, MANY)

# Viridis without the end that vanishes on the page: yellow on white, violet on black.
_VIRIDIS_LIGHT = (0.0, 0.76)
_VIRIDIS_DARK = (0.34, 1.0)

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "diamond", "triangle-up", "pentagon", "triangle-down")


def rank_colors(ranks: Iterable[int]) -> dict[int, Color]:
    """Map each rank to a color on a perceptual scale over log2(rank), smallest darkest on white."""
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


def faded(color: str) -> str:
    """Return a translucent form of a color, for bands. Takes ``#rrggbb`` or ``rgb(r, g, b)``."""
    if color.startswith("#"):
        channels = ", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    else:
        channels = color[color.index("(") + 1 : color.index(")")]
    return f"rgba({channels}, 0.14)"


def dark_colors(ranks: Iterable[int]) -> dict[str, str]:
    """Map every color of the figures from light to dark, translucent forms included."""
    pairs = [*_FIXED, *rank_colors(ranks).values()]
    solid = {pair.light: pair.dark for pair in pairs}
    return solid | {faded(light): faded(dark) for light, dark in solid.items()}
