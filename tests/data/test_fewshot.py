"""Few-shot examples: their source, that none is scored, and how they are rendered."""

import json
from pathlib import Path

import pytest
from chat_tokenizers import CHATML, byte_tokenizer
from evaluation_worlds import encoder

from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.errors import UserError


def rows(folder: Path, **files: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def question(number: int, subject: str = "a") -> dict[str, object]:
    return {"question": f"q{number}", "choices": ["yes", "no"], "answer": 0, "subject": subject}


def own(folder: Path, **options: object) -> LoadedTask:
    return load_task(TaskConfig(name="mine", path=str(folder), **options), None, 0)


def test_training_rows_give_the_examples_and_none_is_scored(tmp_path: Path) -> None:
    test = [question(n) for n in range(100, 110)]
    # Nine training rows of ten stand in test too: only q0 and q1 can be shots.
    train = [question(0), question(1), *test[:9]]
    folder = rows(tmp_path, train=train, validation=[question(n) for n in range(50, 53)], test=test)
    task = own(folder, num_fewshot=2)
    shown = {asked for item in task.test + task.validation for asked, _ in item.fewshot}
    assert shown == {"Question: q0\nAnswer:", "Question: q1\nAnswer:"}
    assert all(not item.fewshot for item in task.train)
    assert len(task.test) == 10
    assert task.fewshot_source == "training rows"
    one = own(folder, num_fewshot=1)
    assert one.test[0].fewshot == task.test[0].fewshot[:1]
    assert len({own(folder).sha256, one.sha256, task.sha256}) == 3
    with pytest.raises(
        UserError, match="num_fewshot: found 2 usable rows in the training rows, expected 3"
    ):
        own(folder, num_fewshot=3)


def test_dev_rows_are_only_examples(tmp_path: Path) -> None:
    dev, test = [question(n) for n in range(5)], [question(n) for n in range(4, 24)]
    task = own(rows(tmp_path, dev=dev, test=test), num_fewshot=5)
    scored = {item.question for item in task.validation + task.test}
    assert "q4" not in scored  # a copy of a shot
    assert len(scored) == 19
    config = TaskConfig(name="mine", path=str(tmp_path), num_fewshot=5)
    assert len(load_task(config, None, 0, keep_test_whole=True).test) == 19
    assert task.fewshot_source == "dev file"
    with pytest.raises(UserError, match="only test rows, and none for examples"):
        own(rows(tmp_path / "alone", test=test), num_fewshot=1)


def test_leaks_are_counted_of_the_rows_that_are_scored(tmp_path: Path) -> None:
    """q4 stands among the shots too, and is taken out; q5 contamination and stays."""
    dev, test = [question(n) for n in range(5)], [question(n) for n in range(4, 24)]
    train = [question(n) for n in (4, 5, *range(30, 40))]
    task = own(
        rows(tmp_path, dev=dev, train=train, validation=[question(50)], test=test), num_fewshot=5
    )
    assert [item.question for item in task.test if item.item_id in task.contaminated_ids] == ["q5"]
    assert task.contamination == {"exact": 1, "ngram13": 0}


def test_mmlu_takes_the_dev_rows_of_the_same_subject(data_dir: Path) -> None:
    task = load_task(TaskConfig(name="mmlu", num_fewshot=5), data_dir, 0, max_items=300)
    lines = (data_dir / "mmlu" / "validation.jsonl").read_text("utf-8").splitlines()
    dev = [json.loads(line) for line in lines]
    for item in task.test:
        of_subject = [row for row in dev if row["subject"] == item.subject]
        assert len(of_subject) == 5
        assert [asked.split("\nA. ")[0] for asked, _ in item.fewshot] == [
            f"Question: {row['question']}" for row in of_subject
        ]
        assert [answer for _, answer in item.fewshot] == [
            "ABCD"[row["answer"]] for row in of_subject
        ]
    questions = {row["question"] for row in dev}
    assert not questions & {item.question for item in task.test + task.validation}


def test_plain_examples_are_a_block_and_chat_examples_are_turns(tmp_path: Path) -> None:
    test = [question(n) for n in range(9, 14)]
    folder = rows(tmp_path, dev=[question(1), question(2)], test=test)
    item = own(folder, num_fewshot=2).test[0]
    shown = dict(item.fewshot)
    assert set(shown) == {"Question: q1\nAnswer:", "Question: q2\nAnswer:"}
    first, second = shown
    plain = encoder()
    text = plain.tokenizer.decode(plain.prompt_ids(item))
    assert text == f"{first} yes\n\n{second} yes\n\n{item.prompt}"
    chat = Encoder(byte_tokenizer(CHATML), "chat", 400)
    text = chat.tokenizer.decode(chat.prompt_ids(item))
    places = [text.index(part) for part in (first, second, item.prompt)]
    assert places == sorted(places)
    assert text.count("yes") == 2
    assert text.count("user") == 3


def test_conversations_and_texts_take_no_examples(tmp_path: Path) -> None:
    folder = rows(tmp_path, train=[{"text": f"t{n}"} for n in range(30)])
    with pytest.raises(UserError, match="num_fewshot"):
        own(folder, num_fewshot=1)
