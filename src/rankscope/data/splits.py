"""Three splits from the files of a task: train, selection (chooses) and report (is quoted).

No row stands in two of them, but for report rows that were published in train too: those are
counted as leaks. Every draw is a pure function of (seed, task, purpose), so adding a
task or a limit moves no other draw.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rankscope.data.items import Item
from rankscope.errors import BadInput

MIN_SELECTION_FILE = 50
"""A published validation file with fewer rows chooses too noisily and is not used."""
MAX_CUT = 500
CUT_SHARE = 0.1
TEST_CUT_SHARE = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of one task by use."""

    train: tuple[Item, ...]
    selection: tuple[Item, ...]
    report: tuple[Item, ...]
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
    nothing_is_chosen: bool = False,
) -> Splits:
    """Assign the rows of a task's files to train, selection and report.

    Args:
        task: name of the task, part of every draw.
        files: rows by file: ``train``, ``validation``, ``test``, any of them absent.
        data_seed: the study's ``data_seed``.
        own: the user's own data, whose validation file is used whatever its size.
        nothing_is_chosen: the report file is scored whole: no selection is cut from it.

    Returns:
        Selection is the validation file (of at least 50 rows, for published data); else min(500,
        10 %) of the distinct train rows; else 20 % of the distinct test rows. Report is the test
        file less what selection took; where there is none, min(500, 10 %) of the distinct train
        rows. Copies go where their original goes. Selection rows that repeat a report row, and
        training rows that repeat a selection row, are taken out.

    Raises:
        BadInput: where the rows are too few to make a selection and a report split.
    """
    train = list(files.get("train", ()))
    validation = list(files.get("validation", ()))
    report = list(files.get("test", ()))
    notes = []
    selection = validation if own or len(validation) >= MIN_SELECTION_FILE else []
    if validation and not selection:
        notes.append(
            f"{task}: the validation file's {len(validation)} rows are too few to choose by "
            f"(under {MIN_SELECTION_FILE}) and are not used"
        )
    size = min(MAX_CUT, max(1, int(CUT_SHARE * len(_originals(train)))))
    if not report and train:
        train, report = _cut(train, size, data_seed, task, "report")
        notes.append(f"{task}: no report rows were given; {len(report)} were cut from train")
    if not selection and train:
        train, selection = _cut(train, size, data_seed, task, "selection")
        notes.append(f"{task}: {len(selection)} selection rows were cut from train")
    elif not selection and report and not nothing_is_chosen:
        size = max(1, int(TEST_CUT_SHARE * len(_originals(report))))
        report, selection = _cut(report, size, data_seed, task, "selection")
        notes.append(f"{task}: no train rows; {len(selection)} selection rows were cut from test")
    selection, quoted = _without(selection, report)
    if not report or not (selection or nothing_is_chosen):
        raise BadInput(
            f"task {task!r}: {len(train)} train, {len(selection)} selection and {len(report)} "
            f"report rows are left, {quoted} selection rows being report rows too; expected at "
            "least one selection and one report row. Give more rows, or the missing file "
            "('selection:' or 'report:')"
        )
    if quoted:
        notes.append(f"{task}: {quoted} selection rows repeat a report row and were taken out")
    train, repeated = _without(train, selection)
    if files.get("train") and not train:
        raise BadInput(
            f"task {task!r}: no train row is left once {len(selection)} selection and "
            f"{len(report)} report rows are taken out; give more train rows"
        )
    if repeated:
        notes.append(f"{task}: {repeated} train rows repeat a selection row and were taken out")
    for name, rows in (("train", train), ("selection", selection), ("report", report)):
        distinct = {(row.prompt, row.question, row.choices, row.completion) for row in rows}
        copies = len(rows) - len(distinct)
        if copies:
            notes.append(f"{task}: {copies} {name} rows are copies of others and were kept")
    return Splits(tuple(train), tuple(selection), tuple(report), tuple(notes))


def _without(rows: list[Item], others: list[Item]) -> tuple[list[Item], int]:
    """Rows whose question and gold answer stand in no other row, and how many did."""
    held = {row.content for row in others}
    kept = [row for row in rows if row.content not in held]
    return kept, len(rows) - len(kept)
