"""Loading of one task: ``load_task`` reads, checks, renders and splits its rows."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rankscope.config.section import short_repr
from rankscope.config.task import TaskConfig
from rankscope.data.formats import LABELED_TEXT, PLAIN_TEXT, ParsedFile, parse_files
from rankscope.data.items import LETTERS, Item, Message
from rankscope.data.numbers import is_number
from rankscope.data.registry import TaskSpec, overlapping_subjects
from rankscope.data.rows import (
    BadRow,
    RawRow,
    check_rejected,
    duplicate_choice,
    refuses_bad_rows,
    rejected_note,
)
from rankscope.data.sources import DEV
from rankscope.data.splits import (
    EXAMPLE_SOURCES,
    choose_examples,
    contamination_notes,
    example_file,
    find_contamination,
    first_of_order,
    split_rows,
    with_examples,
    without,
)
from rankscope.data.task_source import locate_rows, own_spec
from rankscope.errors import UserError
from rankscope.evaluate.scorers import get_scorer
from rankscope.formatting import count
from rankscope.hashing import sha256_json
from rankscope.records import Split

NUMERIC_SHARE = 0.95  # Share of numeric answers

KEY_LENGTH = 12
"""Hex digits in the id of an own row: 48 bits. Rows with equal digits are numbered."""

TEMPLATE_FIELD = re.compile(r"\{(\w+)\}")
MAX_COLUMNS = 8  # Most names of unused columns in a note

# Purposes of the draws. They are part of the seed: another text would draw other items.
ITEMS_DRAWS = {"validation": "selection items", "test": "report items"}


@dataclass(frozen=True, slots=True)
class LoadedTask:
    spec: TaskSpec
    source: str  # Where the rows came from, for people
    train: tuple[Item, ...] = ()
    validation: tuple[Item, ...] = ()
    test: tuple[Item, ...] = ()
    sha256: str = ""  # Hash of the items used, prompts included
    is_own: bool = False  # The user's own rows
    from_hub: bool = False  # The rows were read from the hub
    dropped: int = 0  # Rows dropped on reading
    contamination: dict[str, int] = field(default_factory=dict)
    """Number of test rows that are also in train, by kind: exact, ngram13."""
    notes: tuple[str, ...] = ()  # Facts for readers of the results, one sentence each
    contaminated_ids: frozenset[str] = frozenset()
    """Ids of test items that the second score, without contamination, leaves out."""
    fewshot_source: str = ""
    """The rows that serve as few-shot examples, for people; empty if there are none."""
    row_shape: str = ""  # Name of the rows' shape, such as ``alpaca``
    parts: tuple["LoadedTask", ...] = ()
    """The tasks of a mixture, each with its own prompt and scorer."""

    def items(self, split: Split) -> tuple[Item, ...]:
        return self.validation if split == "validation" else self.test

    def solved(self, num: int, seed: int) -> tuple[tuple[str, str, str], ...]:
        """Return (task, question, answer) of ``num`` training rows, of each part of a mixture."""
        if self.parts or not num:
            return tuple(chain.from_iterable(part.solved(num, seed) for part in self.parts))
        spec = replace(self.spec, num_fewshot=num, fewshot_by_subject=False)
        get_scorer(spec.scorer).check_task(spec)
        file = example_file(spec, {"train": self.train})
        pool, _ = without([*self.train], self.validation + self.test)
        pairs = choose_examples(spec, pool, file, None, seed)
        return tuple((spec.name, *pair) for pair in pairs)

    def shown_after(self, examples: Sequence[tuple[str, str, str]]) -> "LoadedTask":
        """Put other solved examples, each (task, question, answer), before the items of the
        task."""
        own = tuple((asked, reply) for task, asked, reply in examples if task == self.spec.name)
        validation = tuple(replace(item, fewshot=own) for item in self.validation)
        test = tuple(replace(item, fewshot=own) for item in self.test)
        parts = tuple(part.shown_after(examples) for part in self.parts)
        return replace(self, validation=validation, test=test, parts=parts)


def load_task(
    config: TaskConfig,
    data_dir: Path | None,
    data_seed: int,
    max_items: int | None = None,
    *,
    keep_test_whole: bool = False,
    trained_on: Collection[str] = (),
) -> LoadedTask:
    """Read, check, render and split one task.

    Args:
        config: the task as the study file describes it.
        data_dir: folder with ``<task>/{train,validation,test}.jsonl``; None reads the hub.
        data_seed: seed of the splits and of every limit.
        max_items: at most this many validation and test items each, first of the seeded order.
        keep_test_whole: cut no validation items from a test file.
        trained_on: names of the tasks that the study trains on. Without this task among them,
            training rows that are a separate collection are not read; subjects that other tasks
            among them also contain are left out.
    """
    if config.source is not None:
        return config.source.load_task(config, max_items)
    task, items = read_task_items(config, data_dir, trained_on)
    spec, name = task.spec, task.spec.name
    examples = example_file(spec, items) if spec.num_fewshot else None
    files = {file: rows for file, rows in items.items() if file not in (examples, DEV)}
    whole, own = keep_test_whole, task.is_own
    splits, notes = split_rows(name, files, data_seed, own_data=own, keep_test_whole=whole)
    train = first_of_order(splits["train"], config.max_train_rows, data_seed, name, "train")
    scored = {
        split: first_of_order(splits[split], max_items, data_seed, name, ITEMS_DRAWS[split])
        for split in ("validation", "test")
    }
    if examples is not None:
        pool: Sequence[Item] = items.get(examples, ())
        if not examples:
            pool, _ = without([*splits["train"]], splits["validation"] + splits["test"])
        scored, example_notes = with_examples(spec, pool, examples, scored, data_seed)
        notes += example_notes
    test = scored["test"]
    return replace(
        task,
        spec=replace(spec, chance=_chance_score(spec, test)),
        train=train,
        validation=scored["validation"],
        test=test,
        sha256=items_sha256(train, *scored.values()),
        notes=(*notes, *task.notes, *_subject_notes(config, test)),
        fewshot_source="" if examples is None else EXAMPLE_SOURCES[examples],
    )


def with_contamination(task: LoadedTask) -> LoadedTask:
    """Return a task with the ids of its test rows that are in its own training rows, and notes."""
    found = find_contamination(task.train, task.test)
    notes = () if task.parts else contamination_notes(found, task.spec.name, len(task.test))
    return replace(
        task,
        contamination={kind: len(ids) for kind, ids in found.items()},
        notes=(*task.notes, *notes),
        contaminated_ids=frozenset(chain(*found.values())),
    )


# --- reading ------------------------------------------------------------------------------------


def numeric_answers(items: Sequence[Item]) -> int:
    """Count the answers that are numbers if most are, else 0; the scorer ``number`` suits them."""
    numbers = sum(is_number(item.reference) for item in items)
    return numbers if numbers >= NUMERIC_SHARE * len(items) else 0


def read_task_items(
    config: TaskConfig, data_dir: Path | None, trained_on: Collection[str]
) -> tuple[LoadedTask, dict[str, list[Item]]]:
    """Read the items of a task by file, before the splits, and the task without items."""
    located = locate_rows(config, data_dir, trained=config.name in trained_on)
    files, source = located.read()
    spec, own_data = located.spec, located.spec is None
    names = {str(key): name for key, name in (config.fields or {}).items()} or None
    shapes = () if spec is None else spec.shapes
    if "perplexity" in (config.name, config.scorer):  # of a text, whatever else is in its row
        shapes = (*shapes, PLAIN_TEXT)
    parsed = parse_files(files, names, shapes)
    policy = config.on_bad_rows
    num_rows = sum(map(len, files.values()))
    contents = [content for file in parsed.values() for _, content in file.rows]
    if not contents:
        rejected = [row for file in parsed.values() for row in file.rejected]
        check_rejected(config.name, policy, own_data, rejected, num_rows)
        place = f"task {config.name!r}: {source}"
        raise UserError(place, "no rows", "at least one", "name another source")
    values = {content.subject for content in contents if content.subject is not None}
    if names and "subject" in names and len(values) < 2:
        found = f"{count(len(values), 'value')} in the column {names['subject']!r}"
        rule = "two or more, as it groups the items"
        do = "name another column, or remove 'subject'"
        raise UserError(f"task {config.name!r}: fields", found, rule, do)
    notes: list[str] = []
    if spec is None:
        spec = own_spec(config, contents)
        numbers = numeric_answers(contents)
        if numbers and spec.scorer == "loss" and config.scorer is None:
            notes.append(
                f"{config.name}: {numbers:,} of {len(contents):,} answers are numbers, but they "
                "are scored by log probability; 'scorer: number' in the task generates an answer "
                "and compares its number"
            )
    get_scorer(spec.scorer).check_task(spec)
    excluded = overlapping_subjects(spec.name, trained_on)
    refuses = refuses_bad_rows(policy, own_data)
    items, rejected = _make_items(spec, parsed, excluded, own_data, refuses)
    check_rejected(config.name, policy, own_data, rejected, num_rows)
    _check_inline_options(spec, config, items)
    if rejected:
        notes.append(rejected_note(config.name, rejected, num_rows))
    shape = next(file.shape for file in parsed.values() if file.rows)
    if own_data:
        notes += _column_notes(spec, parsed, shape, contents[0])
    if excluded:
        notes.append(
            f"{spec.name}: subjects left out because the study trains on them: "
            f"{', '.join(sorted(excluded))}"
        )
    told, dropped = tuple(notes), len(rejected)
    task = LoadedTask(spec, source, is_own=own_data, dropped=dropped, notes=told, row_shape=shape)
    return replace(task, from_hub=located.is_hub), items


def _subject_notes(config: TaskConfig, test: Sequence[Item]) -> Iterator[str]:
    """Yield a note if the column of subjects cannot show changes by group."""
    column = (config.fields or {}).get("subject")
    labeled = [item.subject for item in test if item.subject is not None]
    if column and not 2 <= len(set(labeled)) <= len(test) / 2:
        yield (
            f"{config.name}: {column!r} has {count(len(set(labeled)), 'value')} on "
            f"{count(len(test), 'test item')}, so there are no changes by group: they need two "
            "groups, and two items a group on average"
        )
    if column and len(labeled) < len(test):
        yield (
            f"{config.name}: {len(test) - len(labeled):,} of {count(len(test), 'test item')} have "
            f"no {column!r} and are in no group"
        )


def _column_notes(
    spec: TaskSpec, parsed: Mapping[str, ParsedFile], shape: str, first: Item
) -> Iterator[str]:
    """Yield notes on how the columns of own rows were understood.

    They name the options of a classification, and the columns that nothing uses.
    """
    if shape == LABELED_TEXT and first.choices:
        labels = ", ".join(map(short_repr, first.choices))
        yield f"{spec.name}: a classification, whose options are the labels {labels}"
    elif shape == LABELED_TEXT and spec.scorer == "loss":
        yield (
            f"{spec.name}: the labels are too many, or too rare, to be options: they are learned "
            "as written answers; 'scorer: exact_match' in the task counts those that are right"
        )
    in_prompt = set(TEMPLATE_FIELD.findall(spec.prompt))
    unread = dict.fromkeys(name for file in parsed.values() for name in file.unread)
    if unused := [short_repr(name) for name in unread if name not in in_prompt]:
        columns = ", ".join(unused[:MAX_COLUMNS]) + ", ..." * (len(unused) > MAX_COLUMNS)
        hint = "; 'fields: {text: text, label: COLUMN}' makes a classification"
        is_text = shape == PLAIN_TEXT.name and spec.scorer == "loss"
        yield f"{spec.name}: nothing uses the columns {columns}{hint if is_text else ''}"


def _make_items(
    spec: TaskSpec,
    parsed: Mapping[str, ParsedFile],
    excluded: Collection[str],
    own_data: bool,
    refuses: bool,
) -> tuple[dict[str, list[Item]], list[BadRow]]:
    """Return (items by file, all unusable rows in the order of the files).

    The user's own rows get ids and an order from their content, so that a shuffled file is the same
    data. Items of published files keep the row's number and place, because those files do not
    change. Rows of few-shot examples do, too, because their order can be intended.
    """
    items: dict[str, list[Item]] = {}
    rejected: list[BadRow] = []
    for file, content in parsed.items():
        items[file] = []
        unusable = list(content.rejected)
        by_content = own_data and file != DEV
        numbers = (str(row.number) for row, _ in content.rows)
        keys = _content_keys(content.rows) if by_content else numbers
        for key, (row, row_content) in zip(keys, content.rows, strict=True):
            if row_content.subject in excluded:
                continue
            item_id = f"{spec.name}/{file}/{key}"
            try:
                # The right answer is still unique, so a row that repeats a wrong choice can also be
                # kept.
                if refuses and (choice := duplicate_choice(row_content.choices)):
                    found = f"the duplicate choice {short_repr(choice)}, a wrong one"
                    raise BadRow(found, "distinct choices")
                items[file].append(_make_item(row_content, spec, item_id, row.location))
            except BadRow as error:
                unusable.append(error.at(row))
        if by_content:
            items[file].sort(key=lambda item: item.item_id)
        rejected += sorted(unusable, key=lambda row: row.number)
    return items, rejected


def _content_keys(rows: Sequence[tuple[RawRow, Item]]) -> list[str]:
    """Hash each row's content; copies of a row get the hash with ``.2``, ``.3``, ... after it."""
    copies: dict[str, list[int]] = defaultdict(list)
    for position, (_, content) in enumerate(rows):
        turns = [[message.role, message.content] for message in content.messages]
        parts = (content.question, content.completion, content.choices, content.answer)
        others = (content.subject, turns, content.contexts, content.continuation)
        copies[sha256_json([*parts, *others])[:KEY_LENGTH]].append(position)
    keys = [""] * len(rows)
    for key, positions in copies.items():
        # Copies can differ in fields that only a prompt template shows.
        positions.sort(key=lambda position: repr(sorted(rows[position][0].fields.items())))
        for number, position in enumerate(positions, start=1):
            keys[position] = key if number == 1 else f"{key}.{number}"
    return keys


# --- prompts ------------------------------------------------------------------------------------


def _fill_template(template: str, content: Item, location: str) -> str:
    """Replace each plain ``{name}`` in a prompt template by a field; evaluate nothing."""
    values: dict[str, Any] = {**content.fields, "question": content.question}
    values["options"] = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, content.choices, strict=False)
    )

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if not isinstance(value, str | int | float):
            found = f"{{{match[1]}}} in the prompt template, which is no text field of this row"
            raise UserError(location, found, f"one of {', '.join(values)}", "correct the prompt")
        return str(value)

    return TEMPLATE_FIELD.sub(value_of, template)


def _make_item(content: Item, spec: TaskSpec, item_id: str, location: str) -> Item:
    """Make a row an item of its task.

    Raises BadRow: it does not fit the task's scorer. Raises UserError: it does not fit the prompt.
    """
    content = get_scorer(spec.scorer).adapt_row(content)
    prompt = content.question
    if content.contexts:
        assert content.answer is not None
        prompt = content.contexts[content.answer]
    elif not content.messages:
        prompt = _fill_template(spec.prompt, content, location)
    return replace(content, item_id=item_id, prompt=prompt, source_row=location, fields={})


# --- what the record states ---------------------------------------------------------------------


def _check_inline_options(
    spec: TaskSpec, config: TaskConfig, items: Mapping[str, Sequence[Item]]
) -> None:
    """Refuse settings that do not apply to rows whose options are inside the sentence."""
    if any(item.contexts for rows in items.values() for item in rows):
        where, rows = f"task {spec.name!r}", "for rows whose options are inside the sentence"
        if config.prompt is not None:
            raise UserError(where, f"'prompt' {rows}", "none", "remove it")
        if spec.primary_metric not in (None, "acc"):
            found = f"'primary_metric' {spec.primary_metric!r} {rows}"
            raise UserError(where, found, "'acc'", "remove it")


def _chance_score(spec: TaskSpec, test: Sequence[Item]) -> float | None:
    """Return the expected score of guessing among each item's options; None for a score in nats."""
    if spec.score_unit != "accuracy":
        return None
    if get_scorer(spec.scorer).needs_choices:
        return sum(1 / len(item.choices) for item in test) / len(test)
    return None if spec.chance else spec.chance  # of writing an option by chance: not known


def items_sha256(*splits: Sequence[Item]) -> str:
    """Hash items as they are scored; few-shot examples, which many items share, enter once."""
    special = "base_margin contexts fewshot source_row continuation template fields".split()
    names = [f.name for f in fields(Item) if f.name not in special]
    rows: list[Any] = []
    examples: dict[Any, int] = {}
    for item in (item for split in splits for item in split):
        row = [_as_json(getattr(item, name)) for name in names]
        if item.contexts:
            row.append(item.contexts)
        if item.fewshot:
            row.append({"fewshot": examples.setdefault(item.fewshot, len(examples))})
        rows.append(row)
    sizes: list[Any] = [len(split) for split in splits]
    return sha256_json([[*sizes, *([list(examples)] if examples else [])], rows])


def _as_json(value: object) -> object:
    if isinstance(value, tuple):
        return [[m.role, m.content] if isinstance(m, Message) else m for m in value]
    return value
