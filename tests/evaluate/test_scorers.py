"""Pure scoring against hand-made cases."""

import math

import pytest

from rankscope.evaluate.scorers import (
    choice_predictions,
    extract_number,
    first_best,
    normalized_answer,
    standard_error,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("so 5 then 7.\n#### 18\nQuestion: and 99? #### 12", "18"),
        ("#### 1,234", "1234"),
        ("#### $18.00", "18"),
        ("####18", "18"),
        ("#### -3", "-3"),
        ("#### - 3", "-3"),
        ("####", None),
        ("9 #### none, or 4 after all", "4"),
        ("The answer is 18.", "18"),
        ("It costs $1,234,567.50 in all", "1234567.5"),
        ("about 60%", "60"),
        ("x = -3", "-3"),
        ("x = \u22123", "-3"),
        ("16-3", "3"),
        ("(1)-3", "3"),
        ("from -$5 to -$7", "-7"),
        ("007", "7"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("first 10, 20 and 30,5", "5"),
        ("10,2000", "2000"),
        ("123456789012345678901234567890123", "123456789012345678901234567890123"),
        ("no number here - none", None),
        ("", None),
    ],
)
def test_extract_number(text: str, number: str | None) -> None:
    assert extract_number(text) == number


def test_normalized_answer_keeps_what_matters() -> None:
    assert normalized_answer("  The\n CAT. ") == normalized_answer("the cat")
    assert normalized_answer("x+y") != normalized_answer("x-y")
    assert normalized_answer("STRASSE") == normalized_answer("straße")


def test_first_option_wins_ties_and_nan_wins_nothing() -> None:
    assert first_best([-2.0, -1.0, -1.0]) == 1
    assert first_best([-1.0, math.nan]) is None
    assert first_best([-math.inf, -1.0]) == 1


def test_each_normalization_can_pick_its_own_option() -> None:
    # Per option: -4.0, -4.5, -8.0 in all; -2.0, -4.5, -1.6 per token; -2.0, -0.9, -1.0 per letter.
    picks = choice_predictions([-4.0, -4.5, -8.0], [2, 1, 5], ["ab", "abcde", "abcdefgh"])
    assert picks == {"acc": 0, "acc_norm": 1, "acc_token": 2}


def test_length_counts_characters_not_bytes() -> None:
    # Three characters in nine bytes against six in six: -1.0 and -1.1 each.
    assert choice_predictions([-3.0, -6.6], [3, 6], ["日本語", "abcdef"])["acc_norm"] == 0


def test_standard_error() -> None:
    assert standard_error([1.0]) is None
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    # Scores 1, 2, 3, 4: variance 5/3 over n - 1, divided by 4.
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 12))
