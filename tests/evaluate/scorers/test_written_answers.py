"""Scorers of written answers: what each compares, and code that runs only if it is allowed."""

import dataclasses
import random
from pathlib import Path

import pytest
from evaluation_worlds import base, encoder, loaded

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers import get_scorer, scorer_names
from rankscope.evaluate.scorers.rouge import longest_common_subsequence, rouge_l
from rankscope.records import BASE


def judged(scorer: str, gold: str, texts: list[str], extract: str | None = None) -> ModelScores:
    """Scores of answers to items with the same gold answer."""
    items = tuple(Item(f"x/{n}", "q", gold) for n in range(len(texts)))
    spec = dataclasses.replace(loaded(items, "exact_match").spec, extract=extract)
    written = [Generation(None, 0, [], 1, stopped=True, text=text) for text in texts]
    return get_scorer(scorer).judge(items, written, spec)


def test_regex_compares_the_last_match_letter_for_letter() -> None:
    texts = ["A: red. No, A: Blue", "A: Blue. Or A: red", "A: blue", "Blue", ""]
    scores = judged("regex", "so A: Blue", texts, extract=r"A: (\w+)")
    assert [item.score for item in scores.items] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores.metrics == {"exact_match": 0.2, "stopped": 1.0, "answered": 0.6}
    spec = loaded((Item("x/1", "q", "a"),), "exact_match").spec
    with pytest.raises(UserError, match="scorer 'regex': found no 'extract'"):
        get_scorer("regex").check_task(spec)


@pytest.mark.parametrize("scorer", ["regex", "exact_match"])
def test_an_optional_group_that_takes_no_part_is_no_answer(scorer: str) -> None:
    scores = judged(scorer, "so A: no number", ["A: none", "none", "A: 7"], extract=r"A:(?: (\d))?")
    assert [item.score for item in scores.items] == [0.0, 0.0, 0.0]
    assert scores.metrics["answered"] == pytest.approx(1 / 3)
    assert [item.prediction for item in scores.items] == ["", "", "7"]


def test_contains_looks_for_whole_words() -> None:
    texts = ["It is the  New York, of course", "newyork", "new yorkers", "NEW\nYORK.", ""]
    scores = judged("contains", "New York.", texts)
    assert [item.score for item in scores.items] == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert scores.metrics["contains"] == 0.4
    assert judged("contains", "C++", ["use c++ here", "use c"]).metrics["contains"] == 0.5


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


def test_written_gold_answers_have_the_log_probability_that_choice_scoring_gives() -> None:
    """Equal to log p of the same text as an option; one that does not fit the context has none."""
    engine = base()
    words = ["cat", "sat", "the mat"]
    written = tuple(Item(f"toy/test/{n}", f"the dog {n}", w) for n, w in enumerate(words))
    options = tuple(
        dataclasses.replace(item, choices=(item.completion, "zzz"), answer=0) for item in written
    )
    settings = EvaluateConfig(batch_tokens=64, max_new_tokens=2)
    found, expected = (
        evaluate_task(engine, encoder(), loaded(items, name), "test", {None: BASE}, settings)[None][
            1
        ]
        for items, name in ((written, "exact_match"), (options, "option_text"))
    )
    for result, reference in zip(found, expected, strict=True):
        assert result.gold_logprob == pytest.approx(reference.gold_logprob, abs=1e-4)
        assert result.gold_tokens == reference.gold_tokens


GRADER = """
from pathlib import Path

Path(__file__).with_name("ran").touch()

def grade(answer, gold, prompt):
    assert prompt.startswith("what")
    return 0.5 if answer.strip() else 0.0

def broken(answer, gold, prompt):
    return {}[answer]

def beyond(answer, gold, prompt):
    return 2
"""


@pytest.fixture
def grader(tmp_path: Path) -> Path:
    (tmp_path / "grader.py").write_text(GRADER)
    return tmp_path / "grader.py"


def test_what_the_function_returns_is_the_score(
    grader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    place = f"python:{grader}"
    item = Item("x/1", "what 1 ?", "metal 1")
    spec = loaded((item,), "exact_match").spec

    def judge(name: str, text: str) -> ModelScores:
        scorer = get_scorer(f"{place}:{name}")
        scorer.check_task(spec)
        return scorer.judge((item,), [Generation(None, 0, [], 1, stopped=True, text=text)], spec)

    assert judge("grade", "a").metrics == {"score": 0.5, "stopped": 1.0}
    with pytest.raises(
        UserError, match=r"x/1: found a failure of broken of .*grader.py: KeyError: 'a'"
    ):
        judge("broken", "a")
    with pytest.raises(UserError, match=r"found 2, which .* returned, expected a score from 0"):
        judge("beyond", "a")
    with pytest.raises(UserError, match="found no function 'missing'"):
        judge("missing", "a")


def test_an_edited_function_is_read_again(grader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    path, item = grader, Item("x/1", "what 1 ?", "metal 1")
    spec, scorer = loaded((item,), "exact_match").spec, get_scorer(f"python:{path}:grade")
    for score in (0.5, 0.125):
        path.write_text(GRADER.replace("0.5", str(score)))
        scorer.check_task(spec)
        assert scorer.judge_answer(item, "a", None)[0] == score


def test_the_content_of_the_file_is_part_of_the_tasks_identity(grader: Path) -> None:
    scorer = get_scorer(f"python:{grader}:grade")
    before = scorer.encoder_settings(encoder())
    assert before["scorer"] == "python:grader.py:grade"
    grader.write_text(GRADER + "# changed\n")
    assert scorer.encoder_settings(encoder()) != before


PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def scorer_table() -> str:
    """The table of docs/tasks.md."""
    rows = ["| scorer | what runs | metrics; the first is the primary one |", "|---|---|---|"]
    for scorer in map(get_scorer, scorer_names()):
        metrics = [
            f"`{name}`" + (f" ({meaning})" if meaning else "")
            for name, meaning in scorer.metrics.items()
        ]
        rows.append(f"| `{scorer.name}` | {scorer.summary} | {', '.join(metrics)} |")
    return "\n".join(rows)


def test_the_page_lists_every_scorer() -> None:
    assert scorer_table() in PAGE.read_text("utf-8"), f"expected in {PAGE}:\n{scorer_table()}"


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'exact_match'"):
        get_scorer("exact")
