"""Few-shot examples: answered questions shown before each evaluated one.

They come from rows that are never scored: a ``dev`` file, else the training rows, else the
validation file, which then does not choose. ``data_seed`` fixes which rows are used, and fewer
examples are the first of more. Examples by subject from a file are its first rows of the subject,
as MMLU's five dev rows are meant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.sources import DEV
from rankscope.data.splits import seeded_order, without
from rankscope.errors import UserError

Example = tuple[str, str]  # (prompt, answer)

EXAMPLE_DRAW = "shots"
"""Purpose of the draw. It is part of the seed: another text would draw other rows."""


@dataclass(frozen=True, slots=True)
class ExamplePool:
    rows: tuple[Item, ...] = ()
    source: str = ""  # Description of the rows, for people
    file: str = ""  # Split file that the pool takes as a whole; empty for training rows

    def or_train(self, train: Sequence[Item], scored: Sequence[Item]) -> "ExamplePool":
        """This pool, or if it has no file the training rows that no scored split repeats."""
        if self.file:
            return self
        contents = {item.content for item in scored}
        rows = tuple(item for item in train if item.content not in contents)
        return ExamplePool(rows, "training rows")


def example_pool(spec: TaskSpec, items: Mapping[str, Sequence[Item]]) -> ExamplePool:
    """The pool of a task's examples; an empty pool stands for training rows."""
    sample = next(item for rows in items.values() for item in rows)
    if sample.messages or not sample.prompt:
        raise UserError(
            f"task {spec.name!r}: 'num_fewshot' needs rows with a question and an answer; these "
            f"are {'conversations' if sample.messages else 'texts'}. Remove it"
        )
    if items.get(DEV):
        return ExamplePool(tuple(items[DEV]), "dev file", DEV)
    if items.get("train"):
        return ExamplePool()
    if items.get("validation") and items.get("test"):
        source = "validation file, not used to choose"
        return ExamplePool(tuple(items["validation"]), source, "validation")
    raise UserError(
        f"task {spec.name!r}: num_fewshot: {spec.num_fewshot}, but there are only "
        f"{', '.join(items)} rows, and no rows to draw examples from; add a dev or train file, or "
        "set num_fewshot: 0"
    )


def remove_pool_rows(
    spec: TaskSpec, pool: ExamplePool, validation: Sequence[Item], test: Sequence[Item]
) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[str, ...]]:
    """Validation and test items that repeat no row of the pool, and notes."""
    kept_validation, in_validation = without(list(validation), pool.rows)
    kept_test, in_test = without(list(test), pool.rows)
    if not kept_validation or not kept_test:
        raise UserError(
            f"task {spec.name!r}: every validation or test row is also a row that few-shot "
            "examples come from; give other rows, or num_fewshot: 0"
        )
    notes = [f"{spec.name}: {spec.num_fewshot} few-shot examples from the {pool.source}"]
    if removed := in_validation + in_test:
        notes.append(f"{spec.name}: {removed} scored rows that repeat an example were removed")
    return tuple(kept_validation), tuple(kept_test), tuple(notes)


def with_fewshot(
    spec: TaskSpec, pool: ExamplePool, items: Sequence[Item], data_seed: int
) -> tuple[Item, ...]:
    by_subject: dict[str | None, tuple[Example, ...]] = {}
    prepared = []
    for item in items:
        subject = item.subject if spec.fewshot_by_subject else None
        if subject not in by_subject:
            by_subject[subject] = _choose_examples(spec, pool, subject, data_seed)
        prepared.append(replace(item, fewshot=by_subject[subject]))
    return tuple(prepared)


def _choose_examples(
    spec: TaskSpec, pool: ExamplePool, subject: str | None, data_seed: int
) -> tuple[Example, ...]:
    rows = list(pool.rows)
    if spec.fewshot_by_subject:
        rows = [row for row in rows if row.subject == subject]
    # MMLU's dev rows of college_physics contain a copy: it is shown twice, as published.
    if not (spec.fewshot_by_subject and pool.file):
        rows = list({row.content: row for row in rows}.values())
        order = seeded_order(len(rows), data_seed, spec.name, EXAMPLE_DRAW, subject)
        rows = [rows[position] for position in order]
    if len(rows) < spec.num_fewshot:
        of_subject = f" of subject {subject!r}" if subject is not None else ""
        raise UserError(
            f"task {spec.name!r}: num_fewshot: {spec.num_fewshot}, but there are {len(rows)} "
            f"usable rows{of_subject} in the {pool.source}; ask for fewer examples, or give more "
            "rows"
        )
    return tuple((row.prompt, row.completion) for row in rows[: spec.num_fewshot])
