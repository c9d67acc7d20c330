"""Regular expressions that somebody else wrote: compiled and matched within limits.

Nested repetitions such as ``(a+)+`` can take longer than the age of the universe on a short text.
The package ``regex`` reads the syntax of ``re`` and can stop.
"""

from collections.abc import Iterator

import regex

from rankscope.errors import UserError, reason_of

MAX_PATTERN = 2_000  # Characters
MATCH_SECONDS = 1.0  # Processor time for one text; an ordinary expression takes microseconds


def compile_pattern(text: str) -> "regex.Pattern[str]":
    """Compile a regular expression.

    Raises ValueError: the text is none, or is too long; the message continues a sentence about it.
    """
    if len(text) > MAX_PATTERN:
        raise ValueError(f"has {len(text):,} characters: expected at most {MAX_PATTERN:,}")
    try:
        return regex.compile(text)
    except Exception as error:  # also RecursionError, OverflowError and MemoryError
        raise ValueError(f"is not a regular expression: {reason_of(error)}") from error


def matched_parts(pattern: "regex.Pattern[str]", text: str) -> Iterator[str | None]:
    """Yield every match of a pattern that has at most one group.

    A part is the group's text, or the whole match if the pattern has no group. It is None if an
    optional group took no part in the match. Raises UserError: the matches take longer than
    ``MATCH_SECONDS``.
    """
    try:
        for match in pattern.finditer(text, timeout=MATCH_SECONDS):
            yield match.group(pattern.groups)
    except TimeoutError as error:
        where, size = f"regular expression {pattern.pattern!r}", f"{len(text):,} characters"
        found = f"one that takes longer than {MATCH_SECONDS:g} s on a text of {size}"
        rule = "none with nested repetitions such as (a+)+"
        raise UserError(where, found, rule, "rewrite it") from error
