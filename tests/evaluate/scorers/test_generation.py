"""Generated answers: where they stop, and what is compared."""

import dataclasses
import sys
from pathlib import Path

import pytest
from evaluation_worlds import encoder, loaded, scored

from rankscope.data.items import Item, Message
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers import get_scorer, scorer_names
from rankscope.evaluate.scorers.generation import normalized_answer, stop_strings


def test_normalized_answer_keeps_what_matters() -> None:
    assert normalized_answer("  The\n CAT. ") == normalized_answer("the cat")
    assert normalized_answer("x+y") != normalized_answer("x-y")
    assert normalized_answer("STRASSE") == normalized_answer("straße")


@pytest.mark.parametrize(
    ("prompt", "stops"),
    [
        ("Question: {question}\nAnswer:", ("\nQuestion:",)), ("{question}", ()),
        ("{passage}\nQ: {question}\nA:", ("\nQ:",)),
        ("Read, then answer.\n{passage}\nQ: {question}\nA:", ("\nQ:",)), ("{question}\n\n", ()),
        ("{question}\nContext: {passage}\nA:", ("\nContext:",)), ("# {question}\n", ()),
        ("#### {question}\n", ()), ("A {question}", ()),
        ("Problem {n}. {question}", ("\nProblem",)),
        ("### Question: {question}\n### Answer:", ("\n### Question:",)),
    ],
)  # fmt: skip
def test_stop_strings_begin_a_next_question(prompt: str, stops: tuple[str, ...]) -> None:
    item = Item("toy/test/1", "1", "1", reference="1")
    assert stop_strings(encoder(), loaded((item,), "number", prompt).spec, (item,)) == stops
    answer = "9*2=18, 18+4=22\n#### 18"
    for stop in stops:
        assert answer.partition(stop)[0] == answer


def test_conversations_in_plain_text_stop_at_the_next_turn() -> None:
    turns = (Message("user", "1"), Message("assistant", "2"))
    item = Item("toy/test/1", "1", "2", messages=turns, reference="2")
    made = encoder()
    assert stop_strings(made, loaded((item,), "number").spec, (item,)) == ("\n\nUser:",)
    # As the format renders it: a second turn of the user begins so.
    longer = Item("toy/test/2", "1", "2", messages=turns * 2, reference="2")
    rendered = made.tokenizer.decode(made.prompt_ids(longer))
    assert rendered.count("\n\nUser:") == 1


def test_an_item_without_gold_answer_is_refused() -> None:
    item = Item("toy/test/1", "a", " ")
    with pytest.raises(UserError, match="toy/test/1: found no gold answer"):
        get_scorer("number").encode(encoder(), [item], loaded((item,), "number").spec, None)


def test_scores_follow_from_what_was_written() -> None:
    """Gold answers taken from the model's own text are right, others are wrong."""
    plain = [Item(f"toy/test/{n}", word, "1", reference="1") for n, word in enumerate("abcdefgh")]
    _, first = scored(loaded(tuple(plain), "exact_match"))
    items = tuple(
        Item(item.item_id, item.prompt, "x", reference=result.generated if n % 2 else "nothing")
        for n, (item, result) in enumerate(zip(plain, first, strict=True))
    )
    record, results = scored(loaded(items, "exact_match"))
    assert [result.score for result in results] == [0.0, 1.0] * 4
    assert (record.metric, record.score) == ("exact_match", 0.5)
    # Prompts are read twice: to write an answer, and before the gold answer.
    assert record.num_tokens >= 2 * sum(len(encoder().prompt_ids(item)) for item in items)


def test_extractors_compare_the_part_they_find() -> None:
    def written(text: str) -> Generation:
        return Generation(None, 0, [], 1, stopped=True, text=text)

    items = tuple(Item(f"x/{n}", "q", "So the answer is Blue.", reference="") for n in range(4))
    texts = ["I say the answer is blue, not red", "the answer is red", "blue", ""]
    spec = dataclasses.replace(loaded(items, "exact_match").spec, extract=r"answer is (\w+)")
    scores = get_scorer("exact_match").judge(items, [written(text) for text in texts], spec)
    assert [item.score for item in scores.items] == [1.0, 0.0, 0.0, 0.0]
    assert scores.items[0].gold == "blue"
    assert scores.metrics == {"stopped": 1.0, "exact_match": 0.25, "answered": 0.5}
    numbers = (Item("x/1", "q", "so #### 1,234", reference="1234"),)
    spec = dataclasses.replace(spec, extract=r"A: \S+")
    scores = get_scorer("number").judge(numbers, [written("A: $1,234.00 or 7")], spec)
    assert [item.score for item in scores.items] == [1.0]


def test_stop_strings_of_the_task_end_answers() -> None:
    items = tuple(Item(f"toy/test/{n}", f"the cat {n}", "sat") for n in range(4))
    task = loaded(items, "exact_match")
    _, free = scored(task)
    texts = [result.generated or "" for result in free]
    stop = next(c for text in texts for c in text if c.isascii())
    cut = dataclasses.replace(task, spec=dataclasses.replace(task.spec, stop=(stop,)))
    _, found = scored(cut)
    assert [result.generated for result in found] == [
        (result.generated or "").partition(stop)[0] for result in free
    ]


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


def test_written_gold_answers_have_the_log_probability_that_choice_scoring_gives() -> None:
    """Equal to log p of the same text as an option; one that does not fit the context has none."""
    words = ["cat", "sat", "the mat"]
    written = tuple(Item(f"toy/test/{n}", f"the dog {n}", w) for n, w in enumerate(words))
    options = tuple(
        dataclasses.replace(item, choices=(item.completion, "zzz"), answer=0) for item in written
    )
    found, expected = (
        scored(loaded(items, name), max_new_tokens=2)[1]
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

def unknown(answer, gold, prompt):
    return float("nan")
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
        UserError, match=r"x/1: broken of .*grader.py: found a fault \(there is no 'a'\)"
    ):
        judge("broken", "a")
    for name, found in (("beyond", "2"), ("unknown", "nan")):
        with pytest.raises(UserError, match=f"{name} of .*: found {found}, expected"):
            judge(name, "a")
    with pytest.raises(UserError, match="there is no 'missing'"):
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


def test_modules_of_its_folder_count_and_others_do_not(tmp_path: Path) -> None:
    """Whatever the way of the import, and those that a module imports in turn."""
    texts = {
        "grader.py": "import json, numpy, a\n\ndef grade(*_):\n    from pack.b import x\n",
        "a.py": "import grader", "pack/__init__.py": "",
        "pack/b.py": "from . import c\nfrom .deep import d\nfrom ... import outside",
        "pack/c.py": "x = 1", "pack/deep/d.py": "from ..e import *", "pack/e.py": "",
        "unused.py": "",
    }  # fmt: skip
    for folder in (tmp_path / "one", tmp_path / "two"):
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    one, two = (
        get_scorer(f"python:{tmp_path / name}/grader.py:grade").encoder_settings(encoder())
        for name in ("one", "two")
    )
    assert one == two
    assert set(one["modules"]) == set(texts) - {"grader.py", "unused.py"}
    (tmp_path / "two/pack/e.py").write_text("y = 2")
    scorer = get_scorer(f"python:{tmp_path}/two/grader.py:grade")
    assert scorer.encoder_settings(encoder()) != one


def test_modules_of_one_name_are_those_of_their_own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    item = Item("x/1", "what 1 ?", "metal 1")
    spec, places = loaded((item,), "exact_match").spec, [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        head = f"import sys\nsys.path.insert(0, {str(place)!r})\nfrom grading import weight\n"
        (place / "grader.py").write_text(head + "def grade(*_):\n    return weight\n")

    def scores(*weights: float) -> list[float]:
        found = []
        for place, weight in zip(places, weights, strict=True):
            (place / "grading.py").write_text(f"weight = {weight}  # {'-' * round(100 * weight)}\n")
            scorer = get_scorer(f"python:{place}/grader.py:grade")
            scorer.check_task(spec)
            found.append(scorer.judge_answer(item, "a", None)[0])
        return found

    assert scores(0.5, 0.25) == [0.5, 0.25]
    assert scores(0.125, 0.75) == [0.125, 0.75]  # edited


PAGE = Path(__file__).parents[3] / "docs" / "your-model-and-data.md"


def scorer_table() -> str:
    """The table of docs/your-model-and-data.md."""
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
    with pytest.raises(ValueError, match=r"expected one of .*\bexact_match\b"):
        get_scorer("exact")
