"""Rows of HellaSwag and WinoGrande in their published layout, and fields with other names."""

import json
import random
import re
from pathlib import Path

import pytest

from rankscope.config.task import TaskConfig
from rankscope.data.formats import parse_rows
from rankscope.data.hub_formats import remove_brackets
from rankscope.data.sources import RawRow, read_file
from rankscope.data.tasks import load_task
from rankscope.errors import UserError

HELLASWAG = {
    "ind": 4,
    "activity_label": "Removing ice from car",
    "ctx_a": "Then, the man writes over the snow. [header] How to [title] Scrape it.",
    "ctx_b": "he",
    "ctx": "unused",
    "endings": [" [step] adds wax.", "gets on.", "presses  it.", "goes. [substeps] Now."],
    "source_id": "x",
    "split": "train",
    "split_type": "indomain",
    "label": "3",
}
WINOGRANDE = {
    "sentence": "Ian volunteered to eat Dennis's menudo because _ despised eating intestine.",
    "option1": "Ian",
    "option2": "Dennis",
    "answer": "2",
}


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


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (WINOGRANDE | {"answer": "3"}, "expected '1' or '2'"),
        (WINOGRANDE | {"sentence": "no blank"}, "no '_' with text after it"),
        (HELLASWAG | {"label": "four"}, "expected an index from 0"),
        (HELLASWAG | {"label": "4"}, "none of the 4 choices"),
        (HELLASWAG | {"endings": "x"}, "endings must be a list"),
    ],
)
def test_wrong_published_rows_are_named(row: dict[str, object], expected: str) -> None:
    (rejected,) = parse_rows([RawRow("f.jsonl, row 7", 7, row)]).rejected
    assert rejected.location == "f.jsonl, row 7"
    assert expected in rejected.reason


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
    with pytest.raises(UserError, match=r"row 1: field 'Frag'.* did you mean 'Frage'"):
        load_task(wrong, None, 0)


def test_a_text_file_is_its_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n one\ntwo\n\n\nthree\n", encoding="utf-8")
    found = [(row.number, row.fields) for row in read_file(tmp_path / "t.txt")]
    assert found == [(2, {"text": " one\ntwo"}), (6, {"text": "three"})]


def test_brackets_are_removed_as_by_one_expression() -> None:
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choice(["[", "]", "a", "  ", "\n", " [title]"]) for _ in range(12))
        marked = text.strip().replace(" [title]", ". ")
        assert remove_brackets(text) == re.sub(r"\[.*?\]", "", marked).replace("  ", " ")
