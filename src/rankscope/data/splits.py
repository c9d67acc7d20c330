"""Three splits from the files of a task: train, validation (chooses) and test (is quoted).

No row stands in two of them, but for test rows that were published in train too: those are
counted as contamination. Every draw is a pure function of (seed, task, purpose), so adding a
task or a limit moves no other draw.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rankscope.data.items import Item
from rankscope.errors import UserError

MIN_VALIDATION_FILE = 50
"""A published validation file with fewer rows chooses too noisily and is not used."""
MAX_CUT = 500
CUT_SHARE = 0.1
TEST_CUT_SHARE = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of one task by use."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    notes: tuple[str, ...]
    """What was cut from where, one sentence each."""


def seeded_order(count: int, *purpose: object) -> list[int]:
    """A permutation of range(count) that depends on ``purpose`` (seed, task, ...) alone."""
    order = list(range(count))
    random.Random("/".join(map(str, purpose))).shuffle(order)
    return order


def first_of_order(rows: Sequence[T], limit: int | None, *purpose: object) -> tuple[T, ...]:
    """The first ``limit`` rows of the seeded order, in file order: smaller limits give subsets."""
    if limit is None or limit >= len(rows):
        return tuple(rows)
    chosen = sorted(seeded_order(len(rows), *purpose)[:limit])
    return tuple(rows[position] for position in chosen)


def _originals(rows: Sequence[Item]) -> list[int]:
    """Positions of the rows that copy no row before them."""
    first: dict[tuple[str, str], int] = {}
    for position, row in enumerate(rows):
        first.setdefault(row.content, position)
    return list(first.values())


def _cut(rows: Sequence[Item], size: int, *purpose: object) -> tuple[list[Item], list[Item]]:
    """(kept, cut): the tail of the seeded order is cut, both stay in file order.

    ``size`` distinct rows are drawn, each as likely whatever its number of copies; the copies go
    where their original goes.
    """
    originals = set(_originals(rows))
    order = [p for p in seeded_order(len(rows), *purpose) if p in originals]
    drawn = {rows[position].content for position in order[len(order) - size :]}
    kept = [row for row in rows if row.content not in drawn]
    return kept, [row for row in rows if row.content in drawn]


def split_rows(
    task: str,
    files: Mapping[str, Sequence[Item]],
    data_seed: int,
    *,
    own: bool,
    keep_test_whole: bool = False,
) -> Splits:
    """Assign the rows of a task's files to train, validation and test.

    Args:
        task: name of the task, part of every draw.
        files: rows by file: ``train``, ``validation``, ``test``, any of them absent.
        data_seed: the study's ``data_seed``.
        own: the user's own data, whose validation file is used whatever its size.
        keep_test_whole: the test file is scored whole: no validation is cut from it.

    Returns:
        Validation is the validation file (of at least 50 rows, for published data); else min(500,
        10 %) of the distinct train rows; else 20 % of the distinct test rows. Report is the test
        file less what validation took; where there is none, min(500, 10 %) of the distinct train
        rows. Copies go where their original goes. Validation rows that repeat a test row, and
        training rows that repeat a validation row, are taken out.

    Raises:
        UserError: where the rows are too few to make a validation and a test split.
    """
    train = list(files.get("train", ()))
    given = list(files.get("validation", ()))
    test = list(files.get("test", ()))
    notes = []
    validation = given if own or len(given) >= MIN_VALIDATION_FILE else []
    if given and not validation:
        notes.append(
            f"{task}: the validation file's {len(given)} rows are too few to choose by "
            f"(under {MIN_VALIDATION_FILE}) and are not used"
        )
    size = min(MAX_CUT, max(1, int(CUT_SHARE * len(_originals(train)))))
    if not test and train:
        train, test = _cut(train, size, data_seed, task, "report")
        notes.append(f"{task}: no test rows were given; {len(test)} were cut from train")
    if not validation and train:
        train, validation = _cut(train, size, data_seed, task, "selection")
        notes.append(f"{task}: {len(validation)} validation rows were cut from train")
    elif not validation and test and not keep_test_whole:
        size = max(1, int(TEST_CUT_SHARE * len(_originals(test))))
        test, validation = _cut(test, size, data_seed, task, "selection")
        notes.append(f"{task}: no train rows; {len(validation)} validation rows were cut from test")
    validation, quoted = _without(validation, test)
    if not test or not (validation or keep_test_whole):
        raise UserError(
            f"task {task!r}: {len(train)} train, {len(validation)} validation and {len(test)} "
            f"test rows are left, {quoted} validation rows being test rows too; expected at "
            "least one validation and one test row. Give more rows, or the missing file "
            "('validation:' or 'test:')"
        )
    if quoted:
        notes.append(f"{task}: {quoted} validation rows repeat a test row and were taken out")
    train, repeated = _without(train, validation)
    if files.get("train") and not train:
        raise UserError(
            f"task {task!r}: no train row is left once {len(validation)} validation and "
            f"{len(test)} test rows are taken out; give more train rows"
        )
    if repeated:
        notes.append(f"{task}: {repeated} train rows repeat a validation row and were taken out")
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        distinct = {(row.prompt, row.question, row.choices, row.completion) for row in rows}
        copies = len(rows) - len(distinct)
        if copies:
            notes.append(f"{task}: {copies} {name} rows are copies of others and were kept")
    return Splits(tuple(train), tuple(validation), tuple(test), tuple(notes))


def _without(rows: list[Item], others: list[Item]) -> tuple[list[Item], int]:
    """Rows whose question and gold answer stand in no other row, and how many did."""
    held = {row.content for row in others}
    kept = [row for row in rows if row.content not in held]
    return kept, len(rows) - len(kept)
