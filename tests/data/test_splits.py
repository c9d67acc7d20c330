"""Laws of the splits: disjoint, complete, seeded, and of the documented sizes."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from chat_tokenizers import CHATML, byte_tokenizer
from evaluation_worlds import encoder

from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item, Message
from rankscope.data.splits import (
    contamination_notes,
    find_contamination,
    first_of_order,
    split_rows,
)
from rankscope.data.tasks import LoadedTask, load_task, with_contamination
from rankscope.errors import UserError


def rows(file: str, count: int) -> list[Item]:
    return [Item(f"t/{file}/{n}", f"{file} {n}", f"answer {n}") for n in range(1, count + 1)]


def ids(items: Sequence[Item]) -> list[str]:
    return [item.item_id for item in items]


# files -> (train, validation, report), published data
PUBLISHED = [
    ({"train": 1000, "validation": 50, "test": 200}, (1000, 50, 200)),
    ({"train": 1000, "validation": 49, "test": 200}, (900, 100, 200)),
    ({"train": 1000, "test": 200}, (900, 100, 200)),
    ({"train": 9000, "test": 200}, (8500, 500, 200)),
    ({"validation": 285, "test": 1000}, (0, 285, 1000)),
    ({"test": 1838}, (0, 367, 1471)),
]
OWN = [
    ({"train": 100}, (60, 20, 20)), ({"train": 700}, (500, 100, 100)),
    ({"train": 100, "test": 30}, (80, 20, 30)), ({"train": 100, "validation": 5}, (80, 5, 20)),
    ({"train": 100, "validation": 5, "test": 30}, (100, 5, 30)), ({"test": 30}, (0, 6, 24)),
    ({"train": 3}, (1, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected", "own"),
    [(f, e, False) for f, e in PUBLISHED] + [(f, e, True) for f, e in OWN],
)
def test_sizes_and_separation(
    files: dict[str, int], expected: tuple[int, int, int], own: bool
) -> None:
    items = {name: rows(name, count) for name, count in files.items()}
    splits, _ = split_rows("t", items, 0, own_data=own)
    parts = [ids(split) for split in splits.values()]
    assert tuple(map(len, parts)) == expected
    together = [i for part in parts for i in part]
    assert len(together) == len(set(together))
    used = {name for name in files if own or name != "validation" or files[name] >= 50}
    assert set(together) == {i for name in used for i in ids(items[name])}
    for part in parts:  # in file order
        numbers = [int(i.rsplit("/", 1)[1]) for i in part]
        assert numbers == sorted(numbers)


def test_a_cut_is_seeded_by_data_seed_and_task() -> None:
    items = {"train": rows("train", 300), "test": rows("test", 50)}
    first = split_rows("t", items, 0, own_data=False)
    assert split_rows("t", items, 0, own_data=False) == first
    for task, seed in (("t", 1), ("u", 0)):
        other, _ = split_rows(task, items, seed, own_data=False)
        assert ids(other["validation"]) != ids(first[0]["validation"])


def test_train_rows_that_repeat_a_validation_row_are_taken_out() -> None:
    train = rows("train", 100)
    held = [Item("t/validation/1", "TRAIN  5!", "Answer 5."), *rows("validation", 60)]
    splits, notes = split_rows(
        "t", {"train": train, "validation": held, "test": train[:2]}, 0, own_data=False
    )
    assert ids(splits["train"]) == [i for i in ids(train) if i != "t/train/5"]
    assert any("1 train rows repeat a validation row" in note for note in notes)
    # Test rows that are train rows are contamination: reported, not removed.
    assert ids(splits["test"]) == ["t/train/1", "t/train/2"]


def test_copies_inside_a_split_are_kept() -> None:
    test = [*rows("test", 20), Item("t/test/21", "test 3", "answer 3")]
    splits, notes = split_rows(
        "t", {"validation": rows("validation", 60), "test": test}, 0, own_data=False
    )
    assert len(splits["test"]) == 21
    assert notes == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "files", [("train",), ("test",), ("train", "test"), ("train", "validation")]
)
def test_copies_stay_together_in_every_cut(files: tuple[str, ...], seed: int) -> None:
    def repeated(file: str, distinct: int) -> list[Item]:
        made = [Item(f"t/{file}/{n}", f"{file} {n % distinct}", "a") for n in range(3 * distinct)]
        many = [Item(f"t/{file}/{1000 + n}", f"{file} 0", "a") for n in range(100)]
        return made + many

    splits, _ = split_rows("t", {file: repeated(file, 50) for file in files}, seed, own_data=True)
    parts = [{row.content for row in part} for part in splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 50 * len(files)
    assert sum(map(len, splits.values())) == 250 * len(files)


def test_validation_rows_that_repeat_a_report_row_are_taken_out() -> None:
    held = rows("validation", 60)
    test = [Item("t/test/1", "Validation 5.", "ANSWER 5"), *rows("test", 20)]
    splits, notes = split_rows("t", {"validation": held, "test": test}, 0, own_data=False)
    assert ids(splits["validation"]) == [i for i in ids(held) if i != "t/validation/5"]
    assert len(splits["test"]) == 21
    assert notes == ["t: 1 validation rows repeat a test row and were removed"]
    # Here test is cut from train, and below one file has two uses.
    both = {"train": rows("train", 50), "validation": rows("train", 50)}
    cut, _ = split_rows("t", both | {"train": rows("train", 60)}, 0, own_data=True)
    contents = [{row.content for row in part} for part in cut.values()]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 60
    with pytest.raises(UserError, match=r"0 validation .* 9 validation .* give test rows that the"):
        split_rows("t", {"validation": rows("test", 9), "test": rows("test", 9)}, 0, own_data=True)


@pytest.mark.parametrize("files", [{"train": 1}, {"train": 2}, {"test": 1}, {"validation": 9}, {}])
def test_too_few_rows_are_refused(files: dict[str, int]) -> None:
    items = {name: rows(name, count) for name, count in files.items()}
    with pytest.raises(UserError, match=r"task 't': .*(one test row|no train row beside)"):
        split_rows("t", items, 0, own_data=True)


def test_limits_are_nested_and_in_file_order() -> None:
    items = rows("test", 100)
    small, large = (first_of_order(items, n, 0, "t") for n in (10, 40))
    assert len(small) == 10
    assert set(small) < set(large)
    assert list(large) == [item for item in items if item in set(large)]
    assert first_of_order(items, None, 0, "t") == first_of_order(items, 500, 0, "t") == tuple(items)
    assert set(first_of_order(items, 10, 1, "t")) != set(small)


ANSWER = {"role": "assistant", "content": "ho"}
WORDS = [f"w{n}" for n in range(400)]


def sentence(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def item(name: str, words: list[str], answer: str = "yes") -> Item:
    return Item(
        name, "Question: " + " ".join(words) + "\nAnswer:", answer, question=" ".join(words)
    )


def test_five_planted_test_rows_are_found_and_nothing_else() -> None:
    rng = random.Random(0)
    train = [item(f"t/train/{n}", sentence(rng, 30)) for n in range(200)]
    report = [item(f"t/test/{n}", sentence(rng, 30)) for n in range(100)]
    copied = train[11].question
    report[3] = item("t/test/3", copied.split())
    report[20] = item("t/test/20", f"  {copied.upper()}!".split(), "Yes.")
    run = train[50].question.split()[8:21]
    assert len(run) == 13
    report[40] = item("t/test/40", [*sentence(rng, 9), *run, *sentence(rng, 4)])
    report[41] = item("t/test/41", copied.split(), "no")  # same question, other answer
    # In the answer, after nearly the same question, and after another one.
    train.append(Item("t/train/300", "where is my parcel", answer := " ".join(sentence(rng, 30))))
    report[42] = Item("t/test/42", "Where is my parcel, please?", f"Sure: {answer[:90]}")
    report[43] = Item("t/test/43", "a question about a thing", answer)
    # Not contamination: 12 words, and the same short question with another answer.
    report[60] = item("t/test/60", [*sentence(rng, 9), *run[:12], "other", *sentence(rng, 4)])
    train.append(item("t/train/200", ["the", "sun", "is"], "hot"))
    report[61] = item("t/test/61", ["the", "sun", "is"], "far")
    contamination = find_contamination(train, report)
    assert contamination == {
        "exact": ("t/test/3", "t/test/20"),
        "ngram13": ("t/test/40", "t/test/41", "t/test/42"),
    }


SYSTEM = Message(
    "system",
    "You are the friendly support assistant of Fernwood Audio; answer briefly, politely and in "
    "plain English, always.",
)
STOCK = [
    f"Thank you for getting in touch with us about your {word}. We are sorry for the trouble; "
    "please send us your order number and we will sort this out within two working days."
    for word in ("delivery", "refund", "headphones", "invoice", "warranty", "repair", "account")
]
OPENINGS = [
    "Hello, I ordered the {} from your web shop some {} days ago and nothing has arrived yet, why?",
    "My {} stopped working after {} days of light use; what are my options under the warranty?",
    "Where is my {}? It has been {} days.",
]


def support_chat(rng: random.Random, number: int, answer: str) -> Item:
    """A chat with the system prompt, a question after a pattern, and a stock answer."""
    words = " ".join(sentence(rng, rng.randrange(1, 4)))
    question = rng.choice(OPENINGS).format(words, rng.randrange(2, 60))
    turns = (SYSTEM, Message("user", question), Message("assistant", answer))
    return Item(f"chat/{number}", "", answer, messages=turns, question=question)


def test_stock_answers_and_a_shared_system_prompt_are_no_contamination() -> None:
    rng = random.Random(0)
    chats = [support_chat(rng, number, rng.choice(STOCK)) for number in range(300)]
    train, test = chats[:270], chats[270:]
    assert find_contamination(train, test) == {"exact": (), "ngram13": ()}
    # An answer that two rows share counts only if they are asked nearly the same.
    train.append(support_chat(rng, 300, "rare " + " ".join(sentence(rng, 40))))
    asked = train[-1].question
    test.append(replace(train[-1], item_id="chat/301", question="Do you also repair turntables?"))
    test.append(replace(train[-1], item_id="chat/302", question=f"{asked} Thanks"))
    test.append(replace(train[-1], item_id="chat/303", question=asked.upper()))
    contamination = find_contamination(train, test)
    assert contamination == {"exact": ("chat/303",), "ngram13": ("chat/302",)}
    assert list(contamination_notes(contamination, "chat", len(test))) == [
        "chat: 1 of 33 test rows are copies of training rows",
        "chat: 1 of 33 test rows overlap the training set (13-gram match)",
    ]


def test_leaks_of_a_real_task_are_those_of_the_slow_way(data_dir: Path) -> None:
    """The reference forms every run of 13 words of both sides as text."""
    task = with_contamination(load_task(TaskConfig(name="arc_challenge"), data_dir, data_seed=0))

    def runs(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}

    train_contents = {row.content for row in task.train}
    train_runs = set().union(*(runs(part) for row in task.train for part in row.content))
    exact = {row.item_id for row in task.test if row.content in train_contents}
    overlapping = {
        row.item_id for row in task.test if any(runs(part) & train_runs for part in row.content)
    }
    assert exact
    assert task.contaminated_ids == exact | overlapping
    assert task.contamination == {"exact": len(exact), "ngram13": len(overlapping - exact)}
    num = f"{len(overlapping - exact)} of {len(task.test)} test rows overlap the training set"
    assert any(num in note for note in task.notes)


def files_of(folder: Path, **files: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def question(number: int, subject: str = "a") -> dict[str, object]:
    return {"question": f"q{number}", "choices": ["yes", "no"], "answer": 0, "subject": subject}


def own(folder: Path, **options: object) -> LoadedTask:
    return with_contamination(
        load_task(TaskConfig(name="mine", path=str(folder), **options), None, 0)
    )


def test_training_rows_give_the_examples_and_none_is_scored(tmp_path: Path) -> None:
    test = [question(n) for n in range(100, 110)]
    # Nine training rows of ten stand in test too: only q0 and q1 can be shots.
    train = [question(0), question(1), *test[:9]]
    folder = files_of(
        tmp_path, train=train, validation=[question(n) for n in range(50, 53)], test=test
    )
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
    task = own(files_of(tmp_path, dev=dev, test=test), num_fewshot=5)
    scored = {item.question for item in task.validation + task.test}
    assert "q4" not in scored  # a copy of a shot
    assert len(scored) == 19
    config = TaskConfig(name="mine", path=str(tmp_path), num_fewshot=5)
    assert len(load_task(config, None, 0, keep_test_whole=True).test) == 19
    assert task.fewshot_source == "dev file"
    with pytest.raises(UserError, match="only test rows, and none for examples"):
        own(files_of(tmp_path / "alone", test=test), num_fewshot=1)


def test_leaks_are_counted_of_the_rows_that_are_scored(tmp_path: Path) -> None:
    """q4 stands among the shots too, and is taken out; q5 contamination and stays."""
    dev, test = [question(n) for n in range(5)], [question(n) for n in range(4, 24)]
    train = [question(n) for n in (4, 5, *range(30, 40))]
    task = own(
        files_of(tmp_path, dev=dev, train=train, validation=[question(50)], test=test),
        num_fewshot=5,
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
    folder = files_of(tmp_path, dev=[question(1), question(2)], test=test)
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
    folder = files_of(tmp_path, train=[{"text": f"t{n}"} for n in range(30)])
    with pytest.raises(UserError, match="num_fewshot"):
        own(folder, num_fewshot=1)
