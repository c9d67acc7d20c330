"""Numbers in written answers: the one grammar that reads golds and predictions alike."""

import re
import unicodedata

ANSWER_MARK = "####"
"""GSM8K's sign before the final number (Cobbe et al., 2110.14168)."""

# A minus is a sign only where it does not stand between two operands, as in 16-3. Thousands are
# grouped by commas in threes, or not at all.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]\u2212-])[-\u2212](?P<gap>[ \t]?))?[$\u00a3\u20ac]?"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<fraction>\.[0-9]+)?"
)


def extract_number(text: str) -> str | None:
    """The number that a written answer ends in, in plain form; None where there is none.

    After the first ``####`` where there is one (a model may run on into a next question), the first
    number; otherwise the last number of the text. ``1,234``, ``$18.00``, ``60%`` and ``18.`` at the
    end of a sentence give ``1234``, ``18``, ``60`` and ``18``: equal numbers give equal texts. A
    minus set off by a space is a dash or a bullet, except right after ``####`` or ``=``.
    """
    _, mark, after = text.partition(ANSWER_MARK)
    if mark:
        return next(iter(_numbers(after, marked=True)), None)
    return next(reversed(_numbers(text, marked=False)), None)


def gold_number(text: str) -> str | None:
    """The only number of a gold answer, after its last ``####`` if any; None where it is not one.

    Fractions (``3/4``), powers of ten (``1e6``), times (``7:30``), several numbers and digits
    beyond ASCII are none: no prediction could be compared with them.
    """
    _, mark, final = text.rpartition(ANSWER_MARK)
    if any(not c.isascii() and unicodedata.category(c) in ("Nd", "Nl", "No") for c in final):
        return None
    found = _numbers(final, marked=bool(mark))
    return found[0] if len(found) == 1 else None


def _numbers(text: str, *, marked: bool) -> list[str]:
    """Every number of a text in plain form; ``marked`` says that ``####`` stands before it."""
    found = []
    for match in _NUMBER.finditer(text):
        if not (match["whole"] or match["fraction"]):
            continue
        before = text[: match.start()].rstrip(" \t")
        # A dash or a bullet is set off by a space; a sign is so only where a value must follow.
        is_sign = not match["gap"] or before.endswith("=") or (marked and not before)
        whole = (match["whole"] or "0").replace(",", "").lstrip("0") or "0"
        fraction = (match["fraction"] or "").rstrip("0").rstrip(".")
        is_negative = match["sign"] and is_sign and (whole, fraction) != ("0", "")
        found.append(f"{'-' if is_negative else ''}{whole}{fraction}")
    return found
