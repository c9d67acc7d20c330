"""Numbers, text and colours as the report writes them."""

import re

import pytest

from rankscope.records import Estimate
from rankscope.report.style import (
    NATS,
    POINTS,
    clock,
    compact,
    dark_colors,
    difference,
    duration,
    faded,
    interval,
    listing,
    number,
    plus_minus,
    rank_colors,
    visible,
)


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=100, seeds=3)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.123456, None, "0.123"),
        (-12.5, 1, "−12.5"),  # noqa: RUF001
        (109_051_904.0, None, "109,051,904"),
        (1234.5, None, "1,234"),
        (None, 2, "–"),  # noqa: RUF001
        (float("nan"), None, "–"),  # noqa: RUF001
    ],
)
def test_number(value: float | None, digits: int | None, text: str) -> None:
    assert number(value, digits) == text


def test_a_share_becomes_points_and_a_log_probability_stays() -> None:
    assert difference(0.0314, POINTS) == "+3.1 points"
    assert difference(0.0314, NATS) == "+0.031 nats per token"
    # A rounded nothing has no sign of a loss.
    assert difference(-0.0001, POINTS) == "+0.0 points"


def test_unknown_intervals_are_said_to_be_unknown() -> None:
    assert interval(estimate(0.02, None, None), POINTS) == "interval unknown"
    assert plus_minus(estimate(0.5, None, None), POINTS) == "50.0 ±?"
    assert plus_minus(estimate(0.5, 0.4, 0.6), POINTS) == "50.0 ±10.0"
    assert interval(estimate(0.02, 0.01, 0.03), POINTS) == "95 % interval +1.0 to +3.0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (59.6, "60 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (None, "–")],  # noqa: RUF001
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (200, "3:20"), (7500, "2:05:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(8192, "8,192"), (54_016, "54 K"), (6_815_744, "6.82 M"), (8_030_261_248, "8.03 B")],
)
def test_compact(n: int, text: str) -> None:
    assert compact(n) == text


def test_visible_spells_out_controls_and_cuts_with_the_length() -> None:
    assert visible("a\u202eb\x00c") == "a[U+202E]b[U+0000]c"
    # Joiners that scripts and emoji need stay as they are.
    assert visible("क्\u200dष\n\tß") == "क्\u200dष\n\tß"
    assert visible("x" * 1_000_000, 10) == "x" * 10 + "… (1,000,000 characters)"


def test_listing_counts_what_it_leaves_out() -> None:
    assert listing([]) == ""
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing("abcdefgh") == "a, b, c, d, e, f and 2 more"


def luminance(color: str) -> float:
    """Relative luminance of an ``rgb(r, g, b)`` colour (WCAG 2, definition of contrast)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_rank_colors_are_ordered_distinct_and_readable_in_both_modes() -> None:
    colors = list(rank_colors([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]).values())
    for mode, page in ((0, "rgb(254, 254, 254)"), (1, "rgb(22, 25, 29)")):
        levels = [luminance(color[mode]) for color in colors]
        assert levels == sorted(levels)
        assert len(set(levels)) == len(levels)
        ground = luminance(page)
        for level in levels:
            high, low = max(level, ground) + 0.05, min(level, ground) + 0.05
            # Graphics need less contrast than text: the marks also differ in shape and place.
            assert high / low > 1.9


def test_one_rank_alone_has_a_color() -> None:
    assert list(rank_colors([16])) == [16]
    assert rank_colors([]) == {}


def test_faded_colors_have_faded_partners() -> None:
    pairs = dark_colors([4, 8])
    for light, dark in list(pairs.items()):
        if not light.startswith("rgba"):
            assert pairs[faded(light)] == faded(dark)
