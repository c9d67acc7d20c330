"""Generated answers: where they stop, and what is compared."""

import dataclasses

import pytest
from evaluation_worlds import (
    base,
    encoder,
    loaded,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import Item, Message
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.generation import normalized_answer, stop_strings
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def test_normalized_answer_keeps_what_matters() -> None:
    assert normalized_answer("  The\n CAT. ") == normalized_answer("the cat")
    assert normalized_answer("x+y") != normalized_answer("x-y")
    assert normalized_answer("STRASSE") == normalized_answer("straße")


@pytest.mark.parametrize(
    ("prompt", "stops"),
    [
        ("Question: {question}\nAnswer:", ("\nQuestion:",)),
        ("{question}", ()),
        ("{passage}\nQ: {question}\nA:", ("\nQ:",)),
        ("Read, then answer.\n{passage}\nQ: {question}\nA:", ("\nQ:",)),
        ("{question}\n\n", ()),
        ("{question}\nContext: {passage}\nA:", ("\nContext:",)),
        ("# {question}\n", ()),
        ("#### {question}\n", ()),
        ("A {question}", ()),
        ("Problem {n}. {question}", ("\nProblem",)),
        ("### Question: {question}\n### Answer:", ("\n### Question:",)),
    ],
)
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
    engine = base()
    plain = [Item(f"toy/test/{n}", word, "1", reference="1") for n, word in enumerate("abcdefgh")]
    settings = EvaluateConfig(max_new_tokens=12)
    task = loaded(tuple(plain), "exact_match")
    first = evaluate_task(engine, encoder(), task, "test", {None: BASE}, settings)[None][1]
    items = tuple(
        Item(item.item_id, item.prompt, "x", reference=result.generated if n % 2 else "nothing")
        for n, (item, result) in enumerate(zip(plain, first, strict=True))
    )
    record, results = evaluate_task(
        engine, encoder(), loaded(items, "exact_match"), "test", {None: BASE}, settings
    )[None]
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
    free = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None][1]
    texts = [result.generated or "" for result in free]
    stop = next(c for text in texts for c in text if c.isascii())
    cut = dataclasses.replace(task, spec=dataclasses.replace(task.spec, stop=(stop,)))
    found = evaluate_task(base(), encoder(), cut, "test", {None: BASE}, SETTINGS)[None][1]
    assert [result.generated for result in found] == [
        (result.generated or "").partition(stop)[0] for result in free
    ]
