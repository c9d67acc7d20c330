"""ROUGE-L, against the library's numbers and the recursion."""

import random
from pathlib import Path

import pytest

from rankscope.extensions.rouge import longest_common_subsequence, rouge_l

from ...run.test_checked_rows import LIMIT, answers, notes

GOLDEN = [
    ("the cat sat on the mat", "the cat is on the mat", 0.8333333333333334),
    ("police killed the gunman", "police kill the gunman", 0.75),
    ("the gunman kill police", "police kill the gunman", 0.5),
    ("A, b; c-d e_f", "a b c d e f", 1.0),
    ("one two three", "three two one zero", 0.2857142857142857),
    ("", "word", 0.0),
    ("x", "y", 0.0),
]
"""Answer, gold answer, and F1 of rougeL by rouge-score 0.1.2 without its stemmer."""


@pytest.mark.parametrize(("answer", "gold", "score"), GOLDEN)
def test_rouge_is_that_of_the_library(answer: str, gold: str, score: float) -> None:
    assert rouge_l(answer, gold) == pytest.approx(score, abs=1e-15)


def test_rouge_counts_words_of_every_alphabet() -> None:
    assert rouge_l("кот сидит", "кот лежит") == 0.5


def test_longest_common_subsequence_against_the_recursion() -> None:
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return slow(a[:-1], b[:-1]) + 1
        return max(slow(a[:-1], b), slow(a, b[:-1]))

    rng = random.Random(0)
    for _ in range(50):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(8))) for _ in range(2))
        assert longest_common_subsequence(a, b) == slow(a, b)
    # A table of its 1.2e9 cells would take minutes.
    assert longest_common_subsequence("ab" * 20_000, "b" * 30_000) == 20_000


def test_gold_answers_that_are_too_long_still_give_points(tmp_path: Path) -> None:
    assert "gold" not in notes(tmp_path, answers(90), scorer="rouge", evaluate=LIMIT)
