"""Every shape of a row, and the rows that are refused."""

import json
import random
import re
from pathlib import Path

import pytest

from rankscope.config.task import TaskConfig
from rankscope.data.formats import FieldNames, _parse_rows as parse_rows
from rankscope.data.hub import _remove_brackets as remove_brackets
from rankscope.data.items import Message
from rankscope.data.rows import NoCompletion, RawRow
from rankscope.data.tasks import load_task
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
OTHER = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

HELLASWAG = {
    "ind": 4, "activity_label": "Removing ice from car",
    "ctx_a": "Then, the man writes over the snow. [header] How to [title] Scrape it.",
    "ctx_b": "he", "ctx": "unused",
    "endings": [" [step] adds wax.", "gets on.", "presses  it.", "goes. [substeps] Now."],
    "source_id": "x", "split": "train", "split_type": "indomain", "label": "3",
}  # fmt: skip
WINOGRANDE = {
    "sentence": "Ian volunteered to eat Dennis's menudo because _ despised eating intestine.",
    "option1": "Ian",
    "option2": "Dennis",
    "answer": "2",
}

# (row, question, completion, choices, answer)
ARC = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
STEM = {"text": ["x", "y"], "label": ["1", "2"]}
OWN_ARC = [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]
MEDMCQA = {"opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3, "exp": None}
MATHQA = {
    "options": "a ) 3 , 800 , b ) rs . 2 , c ) none , d ) 4 ( approx ) , e ) 5",
    "correct": "a",
}
SHAPES = [
    (MCQ, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"answer": "B"}, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"answer": "c"}, "q?", "three", ("one", "two", "three"), 2),
    (MCQ | {"answer": " two "}, "q?", "two", ("one", "two", "three"), 1),
    (MCQ | {"choices": ["B", "A"], "answer": "A"}, "q?", "A", ("B", "A"), 1),
    (MCQ | {"choices": [3, 4.5], "answer": 1}, "q?", "4.5", ("3", "4.5"), 1),
    ({"question": "q", "choices": ARC, "answerKey": "C"}, "q", "z", ("x", "y", "z"), 2),
    ({"question_stem": "q", "choices": STEM, "answerKey": "1"}, "q", "x", ("x", "y"), 0),
    ({"question": "q", **MEDMCQA}, "q", "z", ("w", "x", "y", "z"), 3),
    ({"goal": "g", "sol1": "x", "sol2": "y", "label": 1}, "g", "y", ("x", "y"), 1),
    ({"question": "is it", "answer": True, "passage": "p"}, "is it?", "yes", ("no", "yes"), 1),
    ({"question": "is it ?", "answer": False}, "is it?", "no", ("no", "yes"), 0),
    ({"context": "c", "endings": ["x", "y"], "label": 0}, "c", "x", ("x", "y"), 0),
    (
        {"Problem": "p", **MATHQA},
        *("p", "3 , 800", ("3 , 800", "rs . 2", "none", "4 ( approx )", "5"), 0),
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
    ({"answerKey": "B", "question": {"stem": "q", "choices": OWN_ARC}}, "q", "y", ("x", "y"), 1),
    ({"question": {"stem": "q"}, "choices": ARC, "answerKey": "C"}, "q", "z", ("x", "y", "z"), 2),
    ({"question": {"stem": "q", "choices": OWN_ARC, "answerKey": "B"}}, "q", "y", ("x", "y"), 1),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "hi", "ho", (), None),
    ({"instruction": "i", "output": "o", "chosen": "c", "rejected": "r"}, "i", "o", (), None),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", "c", ("c", "r"), 0),
    ({"question": "p", "chosen": "c", "rejected": "r", "system": "s"}, "p", "c", ("c", "r"), 0),
    ({"prompt": "hi", "chosen": CHAT, "rejected": OTHER}, "hi", "ho", ("ho", "no"), 0),
    ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": OTHER[1:]}, "hi", "ho", ("ho", "no"), 0),
    ({"prompt": "hi", "chosen": CHAT[1:], "rejected": OTHER[1:]}, "hi", "ho", ("ho", "no"), 0),
    (
        {"prompt": "hi", "chosen": CHAT, "rejected": OTHER, "messages": CHAT}, "hi", "ho",
        ("ho", "no"), 0,
    ),
    ({"chosen": "Hi: go on", "rejected": "Hi: go by"}, "Hi: go", " on", (" on", " by"), 0),
    (MCQ | {"answer": "2"}, "q?", "three", ("one", "two", "three"), 2),  # as in a CSV
    (MCQ | {"answer": 2.0}, "q?", "three", ("one", "two", "three"), 2),  # beside an empty cell
    (MCQ | {"choices": ["2", "1"], "answer": "1"}, "q?", "1", ("2", "1"), 1),
    ({"messages": CHAT, "chosen": "c", "rejected": "r"}, "hi", "ho", (), None),
]  # fmt: skip


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


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "hi", "system": "s", "chosen": CHAT[1:], "rejected": OTHER[1:]}, None),
        ({"talk": CHAT, "system": "s"}, {"messages": "talk"}),
    ],
)
def test_a_system_column_begins_the_conversation(
    row: dict[str, object], names: FieldNames | None
) -> None:
    ((_, item),) = parse_rows(raw(row), names=names).rows
    assert [(turn.role, turn.content) for turn in item.messages] == [
        ("system", "s"), ("user", "hi"), ("assistant", "ho")
    ]  # fmt: skip


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


NAN, INFINITE = float("nan"), float("inf")

# (row, found, expected)
BAD_ROWS: list[tuple[dict[str, object], str, str]] = [
    (MCQ | {"answer": 3}, "answer 3, which is none of the 3 choices", "an index from 0 to 2, a"),
    (MCQ | {"answer": -1}, "answer -1", "a letter from A to C or the text of a choice"),
    (MCQ | {"answer": True}, "answer True", ""),
    (MCQ | {"answer": "D"}, "answer 'D'", ""),
    (MCQ | {"answer": 1.5}, "answer 1.5", ""),
    (MCQ | {"answer": "x" * 10**6}, "..., which is none of the 3 choices", ""),
    (MCQ | {"answer": 10**400}, "answer 1000", ""),
    (MCQ | {"choices": ["a", "b", "a "], "answer": 0}, "duplicate choice 'a', which is the answ",
     "distinct choices"),
    (MCQ | {"choices": ["a", NAN]}, "1 usable choices out of 2", "2 to 26 texts"),
    (MCQ | {"choices": ["a", None]}, "1 usable choices out of 2", ""),
    (MCQ | {"choices": ["a"], "answer": 0}, "1 usable choices out of 1", ""),
    (MCQ | {"choices": "ab"}, "str as choices", "a list of texts"),
    (MCQ | {"choices": {"text": 3, "label": 4}}, "{'text': 3, 'label'", "lists of equal length"),
    (MCQ | {"question": 5}, "int in field 'question'", "text"),
    ({"messages": "hi"}, "str in field 'messages'", "a list of messages"),
    ({"messages": ["hi"]}, "str as message 1 of 'messages'", "an object"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "text by the role 'narrator'",
     "text by one of system, developer, user"),
    ({"messages": [{"role": "user", "content": None}]}, "no text by the role 'user'", ""),
    ({"messages": [CHAT[0], CHAT[1] | {"content": None, "tool_calls": [{"id": 1}]}]},
     "a tool call in message 2 of 'messages'", "text: Rankscope trains on written answers alone"),
    ({"messages": [CHAT[0], CHAT[1] | {"function_call": {"name": "f"}}]}, "a tool call", ""),
    ({"prompt": 3, "completion": "c"}, "int in field 'prompt'", "a list of messages"),
    ({"goal": "g", "sol1": "x", "sol2": "y", "label": "9" * 5000}, "'999", "an index from 0"),
    (WINOGRANDE | {"answer": "3"}, "answer '3'", "'1' or '2'"),
    (WINOGRANDE | {"sentence": "no blank"}, "the sentence 'no blank'", "'_' with text after it"),
    (HELLASWAG | {"label": "four"}, "'four' in field 'label'", "an index from 0"),
    (HELLASWAG | {"label": "4"}, "answer 4, which is none of the 4 choices", ""),
    (HELLASWAG | {"endings": "x"}, "'x' as endings", "a list of texts"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "found", "expected"), BAD_ROWS)
def test_wrong_values_are_named_with_their_row(
    row: dict[str, object], found: str, expected: str
) -> None:
    (bad,) = parse_rows(raw(row)).rejected
    assert (bad.where, bad.number) == ("rows.jsonl, row 1", 1)
    assert found in bad.found
    assert expected in bad.expected
    assert len(str(bad)) < 400


def test_unknown_fields_are_refused_with_the_known_ones() -> None:
    for row, fields in (({"a": 1, "b": 2}, "'a', 'b'"), ({}, r"\(none\)")):
        with pytest.raises(UserError, match=rf"row 1: found the fields {fields}, which fit no kno"):
            parse_rows(raw(row))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"prompt": "p", "chosen": "c ", "rejected": "c"},
            "'chosen' and 'rejected' that are equal",
        ),
        ({"chosen": CHAT, "rejected": [CHAT[1], CHAT[1]]}, "differ before their last turn"),
        ({"chosen": CHAT, "rejected": CHAT[:1]}, "differ before their last turn"),
        ({"prompt": "p", "chosen": "c", "rejected": " "}, "no completion in field 'rejected'"),
        ({"chosen": "", "rejected": "r"}, "no completion in field 'chosen'"),
    ],
)
def test_pairs_without_a_preference_are_bad_rows(row: dict[str, object], found: str) -> None:
    (bad,) = parse_rows(raw(row)).rejected
    assert found in str(bad)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "p"}, "completion"), ({"prompt": "p", "completion": None}, "completion"),
        ({"prompt": "p", "completion": NAN}, "completion"),
        ({"prompt": "p", "completion": INFINITE}, "completion"),
        ({"prompt": "p", "completion": " \n"}, "completion"),
        ({"prompt": CHAT[:1], "completion": []}, "completion"), (MCQ | {"answer": None}, "answer"),
        (MCQ | {"answer": NAN}, "answer"), ({"question": "q", "answer": NAN}, "answer"),
        ({"messages": CHAT[:1]}, "messages"), ({"text": ""}, "text"),
        ({"instruction": "i"}, "output"),
        ({"goal": "g", "sol1": "x", "sol2": "y", "label": -1}, "label"),
    ],
)  # fmt: skip
def test_every_shape_can_lack_its_completion(row: dict[str, object], field: str) -> None:
    (rejected,) = parse_rows(raw(row)).rejected
    assert isinstance(rejected, NoCompletion)
    reason = f"found no completion in field {field!r}, expected a text, or which choice is right"
    assert str(rejected) == f"rows.jsonl, row 1: {reason}"


def test_a_missing_answer_is_reported_by_the_rows_own_name_for_it() -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "key": key} for key in (0, None)]
    names: FieldNames = {"question": "question", "choices": "choices", "answer": "key"}
    assert reasons(raw(*rows), names) == [
        "rows.jsonl, row 2: found no completion in field 'key', expected a text, or which choice "
        "is right"
    ]


# --- published data sets, and fields of other names ----------------------------------------------


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_hellaswag_is_cleaned_as_the_harness_does(tmp_path: Path) -> None:
    # By hand after lm-evaluation-harness's rule: " [title]" -> ". ", brackets removed, each pair
    # of spaces to one (a space left at the beginning stays).
    rows = [HELLASWAG | {"ctx_b": f"he {n}"} for n in range(10)]
    write(tmp_path / "hellaswag" / "test.jsonl", rows)
    task = load_task(TaskConfig(name="hellaswag"), tmp_path, 0)
    (item,) = [i for i in (*task.test, *task.validation) if i.question.endswith("He 0")]
    assert item.prompt == (
        "Removing ice from car: Then, the man writes over the snow. How to. Scrape it. He 0"
    )
    assert item.choices == (" adds wax.", "gets on.", "presses it.", "goes. Now.")
    assert item.answer == 3
    assert task.spec.primary_metric == "acc_norm"


def test_winogrande_is_asked_by_what_follows_either_option(tmp_path: Path) -> None:
    rows = [WINOGRANDE | {"sentence": f"{n}. {WINOGRANDE['sentence']}"} for n in range(10)]
    write(tmp_path / "winogrande" / "test.jsonl", [*rows, WINOGRANDE | {"sentence": "no blank"}])
    task = load_task(TaskConfig(name="winogrande"), tmp_path, 0)
    item = next(i for i in (*task.test, *task.validation) if i.question.startswith("0."))
    start = "0. Ian volunteered to eat Dennis's menudo because "
    assert item.contexts == (start + "Ian", start + "Dennis")
    assert item.prompt == start + "Dennis"
    assert item.completion == "despised eating intestine."
    assert (item.choices, item.answer) == (("Ian", "Dennis"), 1)
    assert task.dropped == 1
    letters = load_task(TaskConfig(name="winogrande", scorer="option_letter"), tmp_path, 0)
    assert letters.test[0].contexts == ()
    assert letters.test[0].prompt.endswith("A. Ian\nB. Dennis\nAnswer:")
    for options, expected in (
        ({"prompt": "{question}"}, "prompt"),
        ({"primary_metric": "acc_norm"}, "acc"),
    ):
        with pytest.raises(UserError, match=expected):
            load_task(TaskConfig(name="winogrande", **options), tmp_path, 0)


def test_own_field_names(tmp_path: Path) -> None:
    rows = [
        {"Frage": f"f{n}", "a": "ja", "b": "nein", "key": "B", "prompt": "not a prompt"}
        for n in range(20)
    ]
    write(tmp_path / "rows.jsonl", rows)
    names = {"question": "Frage", "choices": ["a", "b"], "answer": "key"}
    config = TaskConfig(
        name="mine", test=str(tmp_path / "rows.jsonl"), fields=names, prompt="{Frage}? ({key})"
    )
    item = load_task(config, None, 0).test[0]
    assert (item.choices, item.answer) == (("ja", "nein"), 1)
    assert item.prompt == f"{item.question}? (B)"
    wrong = config.model_copy(update={"fields": names | {"question": "Frag"}})
    with pytest.raises(UserError, match=r"row 1: found no field 'Frag'.* did you mean 'Frage'"):
        load_task(wrong, None, 0)
    (wide,) = reasons(raw({f"column {n}": n for n in range(60)}), {"text": "mail"})
    assert len(wide) < 400


def test_brackets_are_removed_as_by_one_expression() -> None:
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choice(["[", "]", "a", "  ", "\n", " [title]"]) for _ in range(12))
        marked = text.strip().replace(" [title]", ". ")
        assert remove_brackets(text) == re.sub(r"\[.*?\]", "", marked).replace("  ", " ")
