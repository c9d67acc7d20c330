"""Numbers, units, times, sizes and text as every room writes them."""

import sys
import unicodedata

import pytest

from rankscope.formatting import (
    NATS,
    POINTS,
    byte_size,
    clock,
    compact,
    difference,
    duration,
    interval,
    join_names,
    number,
    rough_duration,
    safe_text,
    score_text,
    terminal_text,
    unit_of,
    with_interval,
)
from rankscope.records import Estimate


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


def test_accuracies_are_points_and_log_probabilities_are_nats() -> None:
    assert score_text(0.6134, unit_of("accuracy")) == "61.3 %"
    assert score_text(-1.5, unit_of("log_probability")) == "−1.500 nats per token"  # noqa: RUF001
    assert difference(0.0314, POINTS) == "+3.1 points"
    assert difference(0.0314, NATS) == "+0.031 nats per token"
    # A difference that rounds to zero has no minus sign, which would read like a loss.
    assert difference(-0.0001, POINTS) == "+0.0 points"


def test_intervals() -> None:
    known, unknown = estimate(0.02, -0.01, 0.03), estimate(0.02, None, None)
    assert interval(known, POINTS) == "95 % interval −1.0 to +3.0"  # noqa: RUF001
    assert with_interval(known, POINTS) == "+2.0 [−1.0, +3.0]"  # noqa: RUF001
    assert interval(unknown, POINTS) == "interval unknown"
    assert with_interval(unknown, POINTS) == "+2.0 [?]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (59.6, "60 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (None, "–")],  # noqa: RUF001
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_other_times_sizes_and_counts() -> None:
    assert [clock(s) for s in (0.4, 59.6, 200, 7500)] == ["0:00", "1:00", "3:20", "2:05:00"]
    assert [rough_duration(s) for s in (41, 720, 12_600)] == ["41 s", "12 min", "3.5 h"]
    assert [byte_size(n) for n in (12, 1500, 2.5e9, 3e12)] == ["12 B", "1.5 kB", "2.5 GB", "3.0 TB"]
    counts = (8192, 54_016, 6_815_744, 8_030_261_248)
    assert [compact(n) for n in counts] == ["8,192", "54 K", "6.82 M", "8.03 B"]


def test_safe_text_spells_out_controls_and_cuts_with_the_length() -> None:
    assert safe_text("a\u202eb\x00c") == "a[U+202E]b[U+0000]c"
    # Joiners that scripts and emoji need stay as they are.
    assert safe_text("क्\u200dष\n\tß") == "क्\u200dष\n\tß"
    assert safe_text("x" * 1_000_000, 10) == "x" * 10 + "… (1,000,000 characters)"


def test_safe_text_replaces_controls_surrogates_and_direction_marks_alone() -> None:
    reorders = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    for character in map(chr, range(sys.maxunicode + 1)):
        is_unsafe = (
            (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
            or unicodedata.bidirectional(character) in reorders
            or character in "\u061c\u200e\u200f"
        )
        assert (safe_text(character) != character) == is_unsafe


def test_terminal_text_shows_what_would_move_the_cursor_or_reorder_a_row() -> None:
    assert terminal_text("a\x1b[2J\u202eb\u05d0") == "a\\u001b[2J\\u202eb\\u05d0"
    assert terminal_text("a\n\tb") == "a\\n\\tb"
    assert terminal_text("x" * 1_000_000, 10) == "x" * 10 + "... (1,000,000 characters)"


def test_join_names_counts_what_it_leaves_out() -> None:
    assert join_names([]) == ""
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b", "c"]) == "a, b and c"
    assert join_names("abcdefgh") == "a, b, c, d, e, f and 2 more"
