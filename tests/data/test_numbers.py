"""The grammar of numbers in answers, against hand-made cases."""

import random
import re

import pytest

from rankscope.data.numbers import _last_character as last_character, extract_number, gold_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"), ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("so 5 then 7.\n#### 18\nQuestion: and 99? #### 12", "18"), ("#### 1,234", "1234"),
        ("#### $18.00", "18"), ("####18", "18"), ("#### -3", "-3"), ("#### - 3", "-3"),
        ("####", None), ("9 #### none, or 4 after all", "4"), ("The answer is 18.", "18"),
        ("It costs $1,234,567.50 in all", "1234567.5"), ("about 60%", "60"), ("x = -3", "-3"),
        ("x = \u22123", "-3"), ("16-3", "3"), ("(1)-3", "3"), ("from -$5 to -$7", "-7"),
        ("007", "7"), ("0.50", "0.5"), (".5", "0.5"), ("-0.0", "0"),
        ("first 10, 20 and 30,5", "5"), ("10,2000", "2000"),
        ("123456789012345678901234567890123", "123456789012345678901234567890123"),
        ("Answer - 18", "18"), ("The answer is:\n- 18", "18"), ("16 - 3", "3"), ("= 2 - 18", "18"),
        ("the answer --18", "18"), ("= - 3", "-3"), ("####\n- 3", "3"), ("so -3", "-3"),
        ("29, 21, 12, 11 #### 11", "11"), ("no number here - none", None), ("", None),
    ],
)  # fmt: skip
def test_extract_number(text: str, number: str | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"), ("9 * 2 = 18 and so on\n#### 1,234", "1234"),
        ("29, 21, 12, 11 #### 11", "11"), ("The answer is $18.00.", "18"), ("#### - 3", "-3"),
        ("#### -3 degrees", "-3"), ("3/4", None), ("1e6", None), ("7:30", None), ("10, 20", None),
        ("10,20", None), ("1 1/2", None), ("2020-2021", None), ("\u0661\u0668", None),
        ("1\u00bd", None), ("none", None),
    ],
)  # fmt: skip
def test_a_gold_is_one_number(text: str, number: str | None) -> None:
    assert gold_number(text) == number


def test_signs_are_told_from_dashes_by_the_text_before() -> None:
    """Against the whole text before each number, which a long text has no time for."""
    generator = random.Random(0)
    for _ in range(2000):
        text = "".join(
            generator.choice(["-", " ", "\t", "=", "1", "23", "a", "#### "]) for _ in range(12)
        )
        for match in re.finditer(r"\d+", text):
            before = text[: match.start()].rstrip(" \t")
            assert last_character(text, match.start()) == before[-1:]
