"""Numbers in written answers: one grammar for gold answers and predictions."""

import re
import unicodedata

ANSWER_MARK = "####"  # GSM8K's mark before the final number (Cobbe et al., 2110.14168)

# A minus between two operands, as in 16-3, is not a sign. Thousands are grouped by commas in
# threes, or not at all.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]\u2212-])[-\u2212](?P<gap>[ \t]?))?[$\u00a3\u20ac]?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<fraction>\.[0-9]+)?"
)


def extract_number(text: str) -> str | None:
    """Return the final number of a written answer in plain form; None if there is none.

    It is the first number after the first ``####``, because a model may continue with a next
    question; without ``####``, the last number of the text. ``1,234``, ``$18.00``, ``60%`` and
    ``18.`` at the end of a sentence give ``1234``, ``18``, ``60`` and ``18``: equal numbers give
    equal texts. A minus before a space is a dash or a bullet, except right after ``####`` or ``=``.
    """
    _, mark, after = text.partition(ANSWER_MARK)
    if mark:
        return next(iter(_find_numbers(after, marked=True)), None)
    return next(reversed(_find_numbers(text, marked=False)), None)


def gold_number(text: str) -> str | None:
    """Return the only number of a gold answer, after its last ``####`` if any; None otherwise."""
    _, mark, final = text.rpartition(ANSWER_MARK)
    if any(not c.isascii() and unicodedata.category(c) in ("Nd", "Nl", "No") for c in final):
        return None
    numbers = _find_numbers(final, marked=bool(mark))
    return numbers[0] if len(numbers) == 1 else None


def is_number(text: str) -> bool:
    """Whether the whole text is one number, such as ``41.0``, ``$1,234`` or ``60%``."""
    return gold_number(text) is not None and not any(c.isalpha() for c in text)


def _find_numbers(text: str, *, marked: bool) -> list[str]:
    """Return every number of a text in plain form; ``marked`` texts follow ``####``."""
    numbers = []
    for match in _NUMBER.finditer(text):
        if not (match["whole"] or match["fraction"]):
            continue
        before = _last_character(text, match.start())
        # A space separates a dash or bullet from its text; after '=' or '####' it is a sign.
        is_sign = not match["gap"] or before == "=" or (marked and not before)
        whole = (match["whole"] or "0").replace(",", "").lstrip("0") or "0"
        fraction = (match["fraction"] or "").rstrip("0").rstrip(".")
        is_negative = match["sign"] and is_sign and (whole, fraction) != ("0", "")
        numbers.append(f"{'-' if is_negative else ''}{whole}{fraction}")
    return numbers


def _last_character(text: str, end: int) -> str:
    """Return the last character before ``end`` other than a space or tab; empty if there is
    none."""
    while end and text[end - 1] in " \t":
        end -= 1
    return text[end - 1 : end] if end else ""
