"""Shots: answered questions shown before each one that is scored.

They come from rows that nothing is scored on: a ``dev`` file, else the training rows, else the
validation file, which then chooses nothing. Which ones is fixed by ``data_seed`` (of a ``dev`` or
validation file asked by subject: its first rows of the subject, as MMLU's five are meant), and
fewer shots are the first of more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.sources import DEV
from rankscope.data.splits import seeded_order
from rankscope.errors import UserError


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that shots are taken from."""

    rows: tuple[Item, ...] = ()
    source: str = ""
    """What they are, for people; ``file`` is where they stand."""
    file: str = ""
    """Split file that they fill alone; empty for training rows."""

    def left(self, items: Mapping[str, Sequence[Item]]) -> dict[str, Sequence[Item]]:
        """The files without the pool's own, to be split."""
        return {file: rows for file, rows in items.items() if file not in (self.file, DEV)}

    def or_train(self, train: Sequence[Item], scored: Sequence[Item]) -> "Pool":
        """This pool, or where it has no file the training rows that stand in no scored split."""
        if self.file:
            return self
        held = {item.content for item in scored}
        rows = tuple(item for item in train if item.content not in held)
        return Pool(rows, "training rows")


def pool_of(spec: TaskSpec, items: Mapping[str, Sequence[Item]]) -> Pool:
    """Where a task's shots come from.

    Raises:
        UserError: rows that cannot serve as shots, or no rows to take them from.
    """
    some = next(item for rows in items.values() for item in rows)
    if some.messages or not some.prompt:
        raise UserError(
            f"task {spec.name!r}: 'num_fewshot' need rows with a question and an answer; these are "
            f"{'conversations' if some.messages else 'texts'}. Remove it"
        )
    if items.get(DEV):
        return Pool(tuple(items[DEV]), "dev file", DEV)
    if items.get("train"):
        return Pool()
    if items.get("validation") and items.get("test"):
        return Pool(tuple(items["validation"]), "validation file, not used to choose", "validation")
    raise UserError(
        f"task {spec.name!r}: num_fewshot: {spec.num_fewshot}, but there are no rows to take them from: only "
        f"{', '.join(items)} rows were given; expected a file dev or train beside them, or num_fewshot: 0"
    )


def keep_apart(
    spec: TaskSpec, pool: Pool, validation: Sequence[Item], test: Sequence[Item]
) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[str, ...]]:
    """Validation and test without copies of the pool's rows, and a note of how many those were."""
    held = {item.content for item in pool.rows}
    kept = [tuple(i for i in rows if i.content not in held) for rows in (validation, test)]
    out = len(validation) + len(test) - len(kept[0]) - len(kept[1])
    notes = [f"{spec.name}: {spec.num_fewshot} shots from the {pool.source}"]
    if out:
        notes.append(f"{spec.name}: {out} scored rows that repeat a shot's row were taken out")
    if not all(kept):
        raise UserError(
            f"task {spec.name!r}: every validation or test row stands among the rows that shots "
            "come from; give other rows, or num_fewshot: 0"
        )
    return kept[0], kept[1], tuple(notes)


def with_fewshot(
    spec: TaskSpec, pool: Pool, items: Sequence[Item], data_seed: int
) -> tuple[Item, ...]:
    """The items with their shots.

    Raises:
        UserError: fewer rows than shots, of an item's subject where shots are by subject.
    """
    chosen: dict[str | None, tuple[tuple[str, str], ...]] = {}
    made = []
    for item in items:
        subject = item.subject if spec.fewshot_by_subject else None
        if subject not in chosen:
            chosen[subject] = _choose(spec, pool, subject, data_seed)
        made.append(replace(item, fewshot=chosen[subject]))
    return tuple(made)


def _choose(
    spec: TaskSpec, pool: Pool, subject: str | None, data_seed: int
) -> tuple[tuple[str, str], ...]:
    """(prompt, answer) of the shots of one subject, or of all items."""
    rows = list(pool.rows)
    if spec.fewshot_by_subject:
        rows = [row for row in rows if row.subject == subject]
    if spec.fewshot_by_subject and pool.file:
        distinct = rows  # MMLU's dev rows of college_physics hold a copy: shown twice, as published
    else:
        distinct = list({row.content: row for row in rows}.values())
        order = seeded_order(len(distinct), data_seed, spec.name, "shots", subject)
        distinct = [distinct[position] for position in order]
    if len(distinct) < spec.num_fewshot:
        of = f" of subject {subject!r}" if subject is not None else ""
        raise UserError(
            f"task {spec.name!r}: num_fewshot: {spec.num_fewshot}, but the {pool.source} has {len(distinct)} "
            f"usable rows{of}; ask for fewer shots, or give more rows"
        )
    return tuple((row.prompt, row.completion) for row in distinct[: spec.num_fewshot])
