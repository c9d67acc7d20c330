"""Laws of the splits: disjoint, complete, seeded, and of the documented sizes."""

from collections.abc import Sequence

import pytest

from rankscope.data.items import Item
from rankscope.data.splits import first_of_order, split_rows
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
    ({"train": 100}, (80, 10, 10)),
    ({"train": 100, "test": 30}, (90, 10, 30)),
    ({"train": 100, "validation": 5}, (90, 5, 10)),
    ({"train": 100, "validation": 5, "test": 30}, (100, 5, 30)),
    ({"test": 30}, (0, 6, 24)),
    ({"train": 3}, (1, 1, 1)),
]


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


def test_copies_inside_a_split_are_kept_and_reported() -> None:
    test = [*rows("test", 20), Item("t/test/21", "test 3", "answer 3")]
    splits, notes = split_rows(
        "t", {"validation": rows("validation", 60), "test": test}, 0, own_data=False
    )
    assert len(splits["test"]) == 21
    assert notes == ["t: 1 test rows are copies of others and were kept"]


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
