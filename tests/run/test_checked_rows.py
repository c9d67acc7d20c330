"""What ``check`` says of rows before anything trains: cuts, copies, labels that tell little."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import write_rows

from rankscope.errors import UserError
from rankscope.run.study import Study

WORDS = "house road child horse town river garden door stone bird".split()


def notes(folder: Path, rows: list[dict[str, Any]], **study: Any) -> str:
    """What ``check`` says if these rows are trained on, and are the test rows with 'then' before
    their prompts; ``scorer`` is one of the task."""
    task = {"name": "mine"} | {k: study.pop(k) for k in ("scorer", "extract") if k in study}
    for file, before in (("train", ""), ("test", "then ")):
        write_rows(folder / f"{file}.jsonl", [r | {"prompt": before + r["prompt"]} for r in rows])
        task[file] = f"{file}.jsonl"
    whole = {"name": "s", "model": "pocket", "tasks": [task], "seeds": [0], "dtype": "float32"}
    whole |= {"arms": [{"method": "lora", "rank": 1, "lr": 1e-3}]} | study
    (folder / "study.yaml").write_text(json.dumps(whole), "utf-8")
    return "\n".join(Study.load(folder / "study.yaml").check().notes)


def answers(long: int) -> list[dict[str, Any]]:
    """A hundred rows, so many of them with an answer of 40 words; the others have 3."""
    return [
        {
            "prompt": f"what {n} ?",
            "completion": " ".join(WORDS[(n + k) % 10] for k in range(40 if n < long else 3)),
        }
        for n in range(100)
    ]


def labels(*rows: tuple[int, str]) -> list[dict[str, Any]]:
    """So many rows of each label, each with a prompt of its own."""
    golds = [label for num, label in rows for _ in range(num)]
    return [{"prompt": f"ask {n} ?", "completion": label} for n, label in enumerate(golds)]


LIMIT = {"max_new_tokens": 20}


def test_gold_answers_that_cannot_be_written(tmp_path: Path) -> None:
    """Above a twentieth they are noted, above a half refused; the data's own limit is enough."""
    assert "gold" not in notes(tmp_path, answers(3), scorer="exact_match", evaluate=LIMIT)
    said = notes(tmp_path, answers(30), scorer="exact_match", evaluate=LIMIT)
    assert "scored items have a gold answer longer than evaluate.max_new_tokens = 20" in said
    assert "set 'evaluate.max_new_tokens: 40'" in said
    for scorer in ("exact_match", "contains"):
        with pytest.raises(UserError, match=r"gold answer longer than .* 20.*max_new_tokens: 40'"):
            notes(tmp_path, answers(90), scorer=scorer, evaluate=LIMIT)
    enough = {"max_new_tokens": 40}
    assert "gold" not in notes(tmp_path, answers(90), scorer="exact_match", evaluate=enough)


def test_only_what_must_be_written_is_measured(tmp_path: Path) -> None:
    """The number after a chain, the part of ``extract``."""
    rows = answers(90)
    for n, row in enumerate(rows):
        row["completion"] += f" makes {n}"
    assert "gold" not in notes(tmp_path, rows, scorer="number", evaluate=LIMIT)
    for row in rows:
        row["completion"] = row["completion"].replace("makes", "####")
    for scorer in ({"scorer": "number"}, {"scorer": "loss"},
                   {"scorer": "regex", "extract": "#### (.*)"}):  # fmt: skip
        assert "gold" not in notes(tmp_path, rows, evaluate=LIMIT, **scorer)


def test_items_that_are_cut(tmp_path: Path) -> None:
    """At their end by ``max_length``; of answers to be written, at their start by the context."""
    train = {"max_length": 30}
    assert "are cut" not in notes(tmp_path, answers(3), scorer="loss", train=train)
    said = notes(tmp_path, answers(30), scorer="loss", train=train)
    assert "scored items are cut to fit the model's context or train.max_length" in said
    rows = answers(0)
    for row in rows[:20]:
        row["prompt"] = " ".join(WORDS * 60) + row["prompt"]
    settings = {"too_long": "truncate_left"}
    said = notes(tmp_path, rows, scorer="exact_match", evaluate=settings)
    assert "scored items are cut to fit the model's context" in said


def test_copies_among_scored_items(tmp_path: Path) -> None:
    """Equal prompt and answer; one prompt with two answers is two items."""
    assert "copies" not in notes(tmp_path, labels((50, "sun"), (50, "rain")))
    rows = labels((50, "sun"), (50, "rain"))
    rows += [*rows[:7], rows[0], rows[99] | {"completion": "sun"}]
    said = notes(tmp_path, rows)
    assert "mine: 8 of 109 test items are copies of another; copies count as one item" in said


def test_labels_that_tell_little(tmp_path: Path) -> None:
    """Hand counts over training and scored rows, of which the test rows are as many."""
    said = notes(tmp_path, labels((40, "sun"), (35, "rain"), (25, "snow")))
    assert "have the answer" not in said
    assert "contradict" not in said
    assert "tell apart" not in said
    rows = labels((72, "sun"), (18, "rain"), (10, "Rain "))
    rows[80]["prompt"] = rows[0]["prompt"]
    said = notes(tmp_path, rows)
    assert "mine: 72% of 200 rows have the answer 'sun', so always giving it" in said
    assert "mine: rows contradict one another on 2 prompts, such as" in said
    assert "ask 0 ?': 'rain' and 'sun'" in said
    assert "mine: only case or spaces tell these answers apart: 'Rain ' and 'rain'" in said
    free = [row | {"completion": f"{row['completion']} {n // 2}"} for n, row in enumerate(rows)]
    assert "contradict" not in notes(tmp_path, free)  # answers that do not repeat


def test_labels_of_retention_tasks_are_looked_at_and_of_others_not(tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", labels((40, "yes"), (10, "no")))
    other = [{"name": "other", "test": "other.jsonl"}]
    rows = labels((50, "sun"), (50, "rain"))
    said = notes(tmp_path, rows, evaluate={"retention": other})
    assert "other: 80% of 50 rows have the answer 'yes'" in said
    assert "have the answer" not in notes(tmp_path, rows, evaluate={"cross_domain": other})
