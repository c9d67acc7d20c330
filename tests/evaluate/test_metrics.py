"""Metrics against hand-made cases."""

import math

import pytest

from rankscope.evaluate.metrics import choice_predictions, first_best, standard_error


def test_first_option_wins_ties_and_nan_wins_nothing() -> None:
    assert first_best([-2.0, -1.0, -1.0]) == 1
    assert first_best([-1.0, math.nan]) is None
    assert first_best([-math.inf, -1.0]) == 1


def test_each_normalization_can_pick_its_own_option() -> None:
    # Per option: -4.0, -4.5, -8.0 in all; -2.0, -4.5, -1.6 per token; -2.0, -0.9, -1.0 per letter.
    picks = choice_predictions([-4.0, -4.5, -8.0], [2, 1, 5], ["ab", "abcde", "abcdefgh"])
    assert picks == {"acc": 0, "acc_norm": 1, "acc_bytes": 1, "acc_token": 2}


def test_length_counts_characters_and_bytes_apart() -> None:
    # Three characters in nine bytes against six in six: -1.0 and -1.1 per character, -0.333 and
    # -1.1 per byte.
    picks = choice_predictions([-3.0, -6.6], [3, 6], ["日本語", "abcdef"])
    assert (picks["acc_norm"], picks["acc_bytes"]) == (0, 0)
    # -2.0 and -1.5 per character, -0.667 and -1.5 per byte.
    picks = choice_predictions([-6.0, -9.0], [3, 6], ["日本語", "abcdef"])
    assert (picks["acc_norm"], picks["acc_bytes"]) == (1, 0)


def test_standard_error() -> None:
    assert standard_error([1.0]) is None
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    # Scores 1, 2, 3, 4: variance 5/3 over n - 1, divided by 4.
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 12))
