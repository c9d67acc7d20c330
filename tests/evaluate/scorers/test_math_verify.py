"""Generated answers judged as mathematics."""

import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from evaluation_worlds import loaded

from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.scorers import get_scorer, math_verify
from rankscope.evaluate.scorers.math_verify import MathVerifyScorer, _as_expression as as_expression

PAIRS = [
    ("1/2", "0.5", 1),
    ("1/2", r"So the answer is \boxed{\frac{2}{4}}.", 1),
    (r"\frac{-3}{4}", "-0.75", 1),
    ("1/3", "0.3", 0),
    ("{1,2,3}", r"\boxed{\{3, 1, 2\}}", 1),
    ("{1,2,3}", r"$\{1, 2\}$", 0),
    ("x^2+2x+1", "(x+1)^2", 1),
    ("x^2+2x+1", "(x-1)^2", 0),
    # Without marks of LaTeX the library would read both as 2.
    (r"2\sqrt{3}", r"\sqrt{12}", 1),
    (r"2\sqrt{3}", "2", 0),
    # Letters side by side are variables, no words.
    ("2xy", "2ab", 0),
    ("2xy", "2", 0),
    ("x+yz", "x+zy", 1),
    (r"\frac{ab}{2}", r"$\frac{ab}{2}$", 1),
    ("(1,2)", "$(1, 2)$", 1),
    ("[0,1)", "(0,1)", 0),
    ("72%", "0.72", 1),
    ("18", "so we get 18 apples", 1),
    ("18", "18 apples and 3 pears, which are 21", 0),
    # No mathematics: equal texts alone are right.
    ("north", "North.", 1),
    ("north", "south", 0),
    ("5", "", 0),
    ("5", "$" + "9" * 5000 + "$", 0),
    ("5", "$" + "(" * 3000 + "5" + ")" * 3000 + "$", 0),
    ("5", "\ud800 \\frac{}{", 0),
]


@pytest.fixture(scope="module")
def scorer() -> Iterator[MathVerifyScorer]:
    with closing(MathVerifyScorer()) as made:
        yield made


def judged(scorer: MathVerifyScorer, gold: str, answer: str) -> float:
    return scorer.judge_answer(Item(reference=gold), answer, None)[0]


@pytest.mark.parametrize(("gold", "answer", "score"), PAIRS)
def test_equal_mathematics_is_right(
    scorer: MathVerifyScorer, gold: str, answer: str, score: int
) -> None:
    assert judged(scorer, gold, answer) == score


def test_texts_without_words_are_marked_as_latex() -> None:
    assert as_expression(r" 2\sqrt{3} ") == r"$2\sqrt{3}$"
    for text in ("so 18", r"\boxed{2}", "$x$", r"\(x\)", r"\[x\]"):
        assert as_expression(text) == text


def test_the_task_of_math_answers_counts_what_was_found(scorer: MathVerifyScorer) -> None:
    items = tuple(Item(f"x/{n}", "q", "answer: 3/4", reference="") for n in range(3))
    texts = ["it is, answer: 0.75", "answer: 2", "I do not know"]
    written = [Generation(None, 0, [], 1, stopped=True, text=text) for text in texts]
    spec = replace(loaded(items, "math_verify").spec, extract=r"answer: (\S+)")
    scores = scorer.judge(items, written, spec)
    assert [item.score for item in scores.items] == [1.0, 0.0, 0.0]
    assert [item.prediction for item in scores.items] == ["0.75", "2", ""]
    assert scores.metrics == {"math_verify": 1 / 3, "stopped": 1.0, "answered": 2 / 3}


def test_it_judges_in_threads(scorer: MathVerifyScorer) -> None:
    """The library's own limit of time is a signal, which only the main thread may set."""
    found: list[list[float]] = []
    pairs = [("1/2", "2/4"), ("1/2", "1/3")] * 5

    def judge() -> None:
        found.append([judged(scorer, *pair) for pair in pairs])

    threads = [threading.Thread(target=judge) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0] * 5] * 3


def test_an_answer_that_takes_too_long_is_wrong_and_the_next_is_judged() -> None:
    """No signal of Python's interrupts the power of huge integers."""
    item = Item(reference="5")
    with closing(MathVerifyScorer()) as scorer:
        assert scorer.judge_answer(item, "$9^{9^{9^9}}$", None) == (0.0, "5", None)
        assert scorer.judge_answer(item, "5.0", None) == (1.0, "5", "5.0")


def test_without_the_library_the_extra_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = loaded((Item("x/1", "q", "1", reference="1"),), "math_verify").spec
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"no package math-verify, .*rankscope\[math\]"):
        get_scorer("math_verify").check_task(spec)


def test_a_library_that_does_not_run_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify, "PROCESS", "import nothing_of_this_name")
    with pytest.raises(UserError, match="a process that ended with 1, expected math-verify to run"):
        judged(MathVerifyScorer(), "1/2", "0.5")
