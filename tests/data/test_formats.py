"""Every shape of a row, and the rows that are refused."""

import pytest

from rankscope.data.formats import FieldNames, parse_rows, shape_of
from rankscope.data.items import Message
from rankscope.data.sources import RawRow
from rankscope.errors import UserError


def raw(*rows: dict[str, object]) -> list[RawRow]:
    return [RawRow(f"rows.jsonl, row {n}", n, row) for n, row in enumerate(rows, start=1)]


def content(row: dict[str, object], strict: bool = True):
    return parse_rows(raw(row), strict=strict).rows[0][1]


MCQ = {"question": "q?", "choices": ["one", "two", "three"], "answer": 1}
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
        (MCQ | {"answer": 3}, r"row 1: answer 3 is not one of the 3 choices.*0 to 2"),
        (MCQ | {"answer": -1}, r"row 1: answer -1"),
        (MCQ | {"answer": True}, r"row 1: answer True"),
        (MCQ | {"answer": "D"}, r"row 1: answer 'D'"),
        (MCQ | {"answer": 1.0}, r"row 1: answer 1\.0"),
        (MCQ | {"choices": ["a", "b", "a "]}, r"row 1: the choice 'a' is repeated"),
        (MCQ | {"choices": ["a"], "answer": 0}, r"row 1: found 1 usable choices"),
        (MCQ | {"choices": ["a", None]}, r"row 1: found 1 usable choices out of 2"),
        (MCQ | {"choices": "ab"}, r"row 1: choices must be a list"),
        (MCQ | {"question": 5}, r"row 1: field 'question' holds int"),
        ({"messages": "hi"}, r"row 1: field 'messages' must be a list"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            r"message 1 of 'messages' has role 'bot'",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "content of type NoneType"),
        ({"messages": ["hi"]}, "message 1 of 'messages' is not an object"),
        ({"prompt": 3, "completion": "c"}, "field 'prompt' must be a list of messages"),
        ({"a": 1, "b": 2}, r"row 1: the fields 'a', 'b' fit no known shape"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "fit no known shape"),
        ({}, r"\(none\) fit no known shape"),
    ],
)
def test_wrong_values_are_named_with_their_row(row: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        content(row)


def test_the_first_row_of_another_shape_is_named() -> None:
    rows = raw(*[{"prompt": "p", "completion": "c"}] * 3, {"text": "t"}, MCQ)
    with pytest.raises(UserError, match=r"row 4: found the shape 'text', expected 'prompt and"):
        parse_rows(rows, strict=True)


@pytest.mark.parametrize(
    "empty",
    [
        {"prompt": "p"},
        {"prompt": "p", "completion": None},
        {"prompt": "p", "completion": " \n"},
        {"prompt": CHAT[:1], "completion": []},
    ],
)
def test_rows_without_completion_are_counted_up_to_one_percent(empty: dict[str, object]) -> None:
    rows = [{"prompt": "p", "completion": "c"}] * 99
    read = parse_rows(raw(*rows, empty), strict=True)
    assert (len(read.rows), read.without_completion) == (99, 1)
    with pytest.raises(UserError, match="row 99: no completion in field 'completion'; so are 2 of"):
        parse_rows(raw(*rows[:-1], empty, empty), strict=True)


@pytest.mark.parametrize(
    ("full", "empty", "field"),
    [
        (MCQ, MCQ | {"answer": None}, "answer"),
        ({"messages": CHAT}, {"messages": CHAT[:1]}, "messages"),
        ({"text": "t"}, {"text": ""}, "text"),
        ({"instruction": "i", "output": "o"}, {"instruction": "i"}, "output"),
        (
            {"goal": "g", "sol1": "x", "sol2": "y", "label": 1},
            {"goal": "g", "sol1": "x", "sol2": "y", "label": -1},
            "label",
        ),
    ],
)
def test_every_shape_can_lack_its_completion(
    full: dict[str, object], empty: dict[str, object], field: str
) -> None:
    read = parse_rows(raw(*[full] * 99, empty), strict=True)
    assert (len(read.rows), read.without_completion) == (99, 1)
    with pytest.raises(UserError, match=f"row 2: no completion in field '{field}'; so are 1 of 2"):
        parse_rows(raw(full, empty), strict=True)


def test_a_missing_answer_is_reported_by_the_rows_own_name_for_it() -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "key": key} for key in (0, None)]
    names: FieldNames = {"question": "question", "choices": "choices", "answer": "key"}
    with pytest.raises(UserError, match="row 2: no completion in field 'key'"):
        parse_rows(raw(*rows), strict=True, names=names)


def test_flaws_of_published_rows_are_counted_where_they_spoil_the_question() -> None:
    wrong_twice = MCQ | {"choices": ["a", "b", "a"], "answer": 1}
    right_twice = MCQ | {"choices": ["a", "b", "a"], "answer": 0}
    unreadable = {"Problem": "p", "options": "a ) 1 , b ) 2", "correct": "a"}
    read = parse_rows(raw(wrong_twice, right_twice), strict=False)
    assert ([row.number for row, _ in read.rows], read.flawed) == ([1], 1)
    assert parse_rows(raw(unreadable), strict=False).flawed == 1
    with pytest.raises(UserError, match="options do not read"):
        parse_rows(raw(unreadable), strict=True)


def test_a_multiple_choice_row_is_not_taken_for_a_written_answer() -> None:
    (row,) = raw(MCQ)
    assert shape_of(row).name == "multiple choice"
