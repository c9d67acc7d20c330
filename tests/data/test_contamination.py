"""Planted contamination is found by kind; a slow reference agrees on real data."""

import random
from dataclasses import replace
from pathlib import Path

from rankscope.config.task import TaskConfig
from rankscope.data.items import Item, Message
from rankscope.data.splits import (
    contamination_notes,
    find_contamination,
    find_contamination_between_tasks,
)
from rankscope.data.tasks import load_task

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
    task = load_task(TaskConfig(name="arc_challenge"), data_dir, data_seed=0)

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


def test_test_rows_that_another_task_trains_on_are_reported() -> None:
    one = [Item(f"one/{n}", f"q {n}", f"a {n}") for n in range(4)]
    two = [Item("two/1", "Q 1?", "A 1."), Item("two/2", "q 2", "another answer")]
    notes, contaminated = find_contamination_between_tasks(
        {"one": one}, {"one": one, "two": two, "three": []}
    )
    assert contaminated == {"two": {"two/1"}}
    assert notes == ["1 of 2 test rows of two are copies of training rows of one"]
