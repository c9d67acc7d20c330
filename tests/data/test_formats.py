"""Every shape of a row, and the rows that are refused."""

import re

import pytest

from rankscope.data.formats import FieldNames, parse_rows, shape_of
from rankscope.data.items import Message
from rankscope.data.sources import RawRow
from rankscope.errors import UserError


def raw(*rows: dict[str, object]) -> list[RawRow]:
    return [RawRow(f"rows.jsonl, row {n}", n, row) for n, row in enumerate(rows, start=1)]


def content(row: dict[str, object]):
    return parse_rows(raw(row)).rows[0][1]


def reasons(rows: list[RawRow], names: FieldNames | None = None) -> list[str]:
    """The rejected rows of a file, as they are listed."""
    return [str(row) for row in parse_rows(rows, names=names).rejected]


MCQ = {"question": "q?", "choices": ["one", "two", "three"], "answer": 1}
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
TEXT_PARTS = [{"type": "text", "text": "h"}, {"type": "text", "text": "o"}]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

# (row, question, completion, choices, answer)
SHAPES = [
    (MCQ, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"answer": "B"}, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"answer": "c"}, "q?", "three", ("one", "two", "three"), 2),
    (MCQ | {"answer": " two "}, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"choices": ["B", "A"], "answer": "A"}, "q?", "A", ("B", "A"), 1),
    (MCQ | {"choices": [3, 4.5], "answer": 1}, "q?", "4.5", ("3", "4.5"), 1),
    (
        {
            "question": "q",
            "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
        "q",
        "z",
        ("x", "y", "z"),
        2,
    ),
    (
        {
            "question_stem": "q",
            "choices": {"text": ["x", "y"], "label": ["1", "2"]},
            "answerKey": "1",
        },
        "q",
        "x",
        ("x", "y"),
        0,
    ),
    (
        {"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3, "exp": None},
        "q",
        "z",
        ("w", "x", "y", "z"),
        3,
    ),
    ({"goal": "g", "sol1": "x", "sol2": "y", "label": 1}, "g", "y", ("x", "y"), 1),
    ({"question": "is it", "answer": True, "passage": "p"}, "is it?", "yes", ("no", "yes"), 1),
    ({"question": "is it ?", "answer": False}, "is it?", "no", ("no", "yes"), 0),
    ({"context": "c", "endings": ["x", "y"], "label": 0}, "c", "x", ("x", "y"), 0),
    (
        {
            "Problem": "p",
            "options": "a ) 3 , 800 , b ) rs . 2 , c ) none , d ) 4 ( approx ) , e ) 5",
            "correct": "a",
        },
        "p",
        "3 , 800",
        ("3 , 800", "rs . 2", "none", "4 ( approx )", "5"),
        0,
    ),
    ({"prompt": "p", "completion": "c"}, "p", "c", (), None),
    ({"text": "t"}, "", "t", (), None),
    ({"instruction": "i", "input": "n", "output": "o"}, "i\n\nn", "o", (), None),
    ({"instruction": "i", "input": "", "output": "o"}, "i", "o", (), None),
    ({"messages": CHAT}, "hi", "ho", (), None),
    ({"messages": [{"role": "system", "content": "s"}, *CHAT]}, "hi", "ho", (), None),
    ({"messages": [CHAT[0], {"role": "assistant", "content": TEXT_PARTS}]}, "hi", "ho", (), None),
    ({"conversations": SHAREGPT}, "hi", "ho", (), None),
    ({"conversations": CHAT, "system": "s"}, "hi", "ho", (), None),
    ({"prompt": "p", "response": "c"}, "p", "c", (), None),
    ({"instruction": "i", "context": "n", "response": "o"}, "i\n\nn", "o", (), None),
    ({"question": "q", "A": "x", "B": "y", "C": "", "answer": "B"}, "q", "y", ("x", "y"), 1),
    (
        {
            "answerKey": "B",
            "question": {
                "stem": "q",
                "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}],
            },
        },
        "q",
        "y",
        ("x", "y"),
        1,
    ),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "hi", "ho", (), None),
]


@pytest.mark.parametrize(("row", "question", "completion", "choices", "answer"), SHAPES)
def test_what_each_shape_says(
    row: dict[str, object],
    question: str,
    completion: str,
    choices: tuple[str, ...],
    answer: int | None,
) -> None:
    read = content(row)
    assert (read.question, read.completion) == (question, completion)
    assert (read.choices, read.answer) == (choices, answer)


def test_a_chain_loses_its_calculator_marks_and_keeps_its_number() -> None:
    row = {"question": "q", "answer": "He has 2*500=<<2*500=1000>>1000.\n#### 1,000"}
    read = content(row)
    assert read.completion == "He has 2*500=1000.\n#### 1,000"
    assert read.reference == "1000"


def test_a_conversation_ends_with_its_last_answer() -> None:
    read = content({"messages": [*CHAT, {"role": "user", "content": "and?"}]})
    assert read.messages == (Message("user", "hi"), Message("assistant", "ho"))
    prompted = content({"prompt": CHAT[:1], "completion": CHAT[1:]})
    assert prompted.messages == read.messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MCQ | {"answer": 3}, r"row 1: found answer 3, which is none of the 3 choices.*0 to 2"),
        (MCQ | {"answer": -1}, r"row 1: found answer -1"),
        (MCQ | {"answer": True}, r"row 1: found answer True"),
        (MCQ | {"answer": "D"}, r"row 1: found answer 'D'"),
        (MCQ | {"answer": 1.0}, r"row 1: found answer 1\.0"),
        (
            MCQ | {"choices": ["a", "b", "a "], "answer": 0},
            r"row 1: found the duplicate choice 'a', which is",
        ),
        (MCQ | {"choices": ["a", float("nan")]}, r"row 1: found 1 usable choices out of 2"),
        (MCQ | {"answer": "x" * 10**6}, r"answer 'x+\.\.\., which is none of the 3 choices"),
        (MCQ | {"choices": {"text": 3, "label": 4}}, "row 1: choices must have 'text' and 'label'"),
        ({"goal": "g", "sol1": "x", "sol2": "y", "label": "9" * 5000}, "expected an index from 0"),
        (MCQ | {"choices": ["a"], "answer": 0}, r"row 1: found 1 usable choices"),
        (MCQ | {"choices": ["a", None]}, r"row 1: found 1 usable choices out of 2"),
        (MCQ | {"choices": "ab"}, r"row 1: choices must be a list"),
        (MCQ | {"question": 5}, r"row 1: found int in field 'question'"),
        ({"messages": "hi"}, r"row 1: field 'messages' must be a list"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            r"message 1 of 'messages' has role 'narrator' and text; expected text, and one of",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "has role 'user' and no text"),
        (
            {"messages": [CHAT[0], CHAT[1] | {"content": None, "tool_calls": [{"id": 1}]}]},
            "found a tool call in message 2 of 'messages', expected text",
        ),
        ({"messages": [CHAT[0], CHAT[1] | {"function_call": {"name": "f"}}]}, "a tool call"),
        ({"messages": ["hi"]}, "message 1 of 'messages' is not an object"),
        ({"prompt": 3, "completion": "c"}, "field 'prompt' must be a list of messages"),
    ],
)
def test_wrong_values_are_named_with_their_row(row: dict[str, object], message: str) -> None:
    (reason,) = reasons(raw(row))
    assert re.search(message, reason)
    assert len(reason) < 400


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"a": 1, "b": 2}, "'a', 'b'"),
        ({}, r"\(none\)"),
    ],
)
def test_unknown_fields_are_refused_with_the_known_ones(
    row: dict[str, object], fields: str
) -> None:
    with pytest.raises(UserError, match=rf"row 1: the fields {fields} fit no known shape; expect"):
        parse_rows(raw(row))


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt: prompt, completion"),
        ({"question": "p", "chosen": "c", "rejected": "r"}, "prompt: question, completion"),
        ({"chosen": CHAT, "rejected": CHAT, "prompt": "hi"}, "messages"),
        ({"chosen": "c", "rejected": "r"}, "text"),
    ],
)
def test_pairs_of_answers_are_refused_with_the_way_to_train_on_one(
    row: dict[str, object], fields: str
) -> None:
    with pytest.raises(UserError) as error:
        parse_rows(raw(row))
    assert str(error.value) == (
        "rows.jsonl, row 1: found a pair of answers, 'chosen' and 'rejected', expected one answer, "
        "as only supervised fine-tuning is compared; train on the chosen one: "
        f"fields: {{{fields}: chosen}}"
    )


def test_rows_of_another_shape_are_named() -> None:
    rows = raw(*[{"prompt": "p", "completion": "c"}] * 3, {"text": "t"}, MCQ, {"a": 1})
    assert reasons(rows) == [
        "rows.jsonl, row 4: found the shape 'text', expected 'prompt and completion' as in "
        "rows.jsonl, row 1",
        "rows.jsonl, row 5: found the shape 'multiple choice', expected 'prompt and completion' "
        "as in rows.jsonl, row 1",
        "rows.jsonl, row 6: found the fields 'a', expected 'prompt and completion' as in "
        "rows.jsonl, row 1",
    ]


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "p"}, "completion"),
        ({"prompt": "p", "completion": None}, "completion"),
        ({"prompt": "p", "completion": NAN}, "completion"),
        ({"prompt": "p", "completion": INFINITE}, "completion"),
        ({"prompt": "p", "completion": " \n"}, "completion"),
        ({"prompt": CHAT[:1], "completion": []}, "completion"),
        (MCQ | {"answer": None}, "answer"),
        (MCQ | {"answer": NAN}, "answer"),
        ({"question": "q", "answer": NAN}, "answer"),
        ({"messages": CHAT[:1]}, "messages"),
        ({"text": ""}, "text"),
        ({"instruction": "i"}, "output"),
        ({"goal": "g", "sol1": "x", "sol2": "y", "label": -1}, "label"),
    ],
)
def test_every_shape_can_lack_its_completion(row: dict[str, object], field: str) -> None:
    (rejected,) = parse_rows(raw(row)).rejected
    assert rejected.lacks_completion
    reason = f"found no completion in field {field!r}, expected a text, or which choice is right"
    assert str(rejected) == f"rows.jsonl, row 1: {reason}"


def test_a_missing_answer_is_reported_by_the_rows_own_name_for_it() -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "key": key} for key in (0, None)]
    names: FieldNames = {"question": "question", "choices": "choices", "answer": "key"}
    assert reasons(raw(*rows), names) == [
        "rows.jsonl, row 2: found no completion in field 'key', expected a text, or which choice "
        "is right"
    ]


def test_a_multiple_choice_row_is_not_taken_for_a_written_answer() -> None:
    (row,) = raw(MCQ)
    shape = shape_of(row)
    assert shape is not None
    assert shape.name == "multiple choice"
