"""Regular expressions of others: the same matches as ``re``, within limits."""

import re

import pytest

from rankscope.config.patterns import compile_pattern, matched_parts
from rankscope.errors import UserError


@pytest.mark.parametrize(
    "pattern",
    [r"is (\w+)", r"\d+", r"A:(?: (\d))?", r"(?i)answer", r"(?<=#) ?\d", "^", r"[^\W_]+", ""],
)
def test_matches_are_those_of_re(pattern: str) -> None:
    text = "The ANSWER is blue_1, A: 7 A: x # 8\nnew line, \u0130stanbul"
    groups = re.compile(pattern).groups
    expected = [match.group(groups) for match in re.finditer(pattern, text)]
    assert list(matched_parts(compile_pattern(pattern), text)) == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is not a regular expression: missing \\)"),
        ("(" * 1000 + ")" * 1000, "is not a regular expression: nested too deeply"),
        ("a" * 3000, "3,000 characters: expected at most 2,000"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_pattern(pattern)


def test_a_pattern_that_never_ends_is_refused() -> None:
    """It doubles its time with every character of the text."""
    pattern = compile_pattern(r"(?:(?:a|b|ab)+)+\1?$".replace(r"\1?", ""))
    with pytest.raises(UserError, match="takes longer than 1 s on a text of 61 characters"):
        list(matched_parts(pattern, "ab" * 30 + "!"))
