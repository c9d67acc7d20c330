"""Planted contamination is found by kind; a slow reference agrees on real data."""

import random
from pathlib import Path

from rankscope.config.task import TaskConfig
from rankscope.data.contamination import find_contamination, find_contamination_between_tasks
from rankscope.data.items import Item
from rankscope.data.tasks import load_task

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
    report[42] = Item("t/test/42", "q", " ".join(run), question="q")  # in the answer
    # Not contamination: 12 words, and the same short question with another answer.
    report[60] = item("t/test/60", [*sentence(rng, 9), *run[:12], "other", *sentence(rng, 4)])
    train.append(item("t/train/200", ["the", "sun", "is"], "hot"))
    report[61] = item("t/test/61", ["the", "sun", "is"], "far")
    contamination = find_contamination(train, report)
    assert contamination.exact == ("t/test/3", "t/test/20")
    assert contamination.ngram13 == ("t/test/40", "t/test/41", "t/test/42")
    assert contamination.counts == {"exact": 2, "ngram13": 3}
    assert contamination.item_ids == {f"t/test/{n}" for n in (3, 20, 40, 41, 42)}


def test_nothing_is_contaminated_without_training_rows() -> None:
    assert find_contamination([], [item("t/test/1", ["a"])]).counts == {"exact": 0, "ngram13": 0}


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
    assert any("13 consecutive words" in note for note in task.notes)


def test_test_rows_that_another_task_trains_on_are_reported() -> None:
    one = [Item(f"one/{n}", f"q {n}", f"a {n}") for n in range(4)]
    two = [Item("two/1", "Q 1?", "A 1."), Item("two/2", "q 2", "another answer")]
    notes, contaminated = find_contamination_between_tasks(
        {"one": one}, {"one": one, "two": two, "three": []}
    )
    assert contaminated == {"two": {"two/1"}}
    assert notes == ["1 of 2 test rows of two are also training rows of one"]
