"""``load_task``: one task of a study file, read, checked, rendered and split."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankscope.config.schema import Scorer, TaskConfig
from rankscope.data.formats import (
    MAX_SHARE_WITHOUT_COMPLETION,
    FileContents,
    RowContent,
    read_contents,
)
from rankscope.data.items import LETTERS, Item, Message
from rankscope.data.leaks import find_leaks
from rankscope.data.named_tasks import (
    CHOICE_SCORERS,
    LETTERED,
    NAMED_TASKS,
    QUESTION,
    WRITTEN_VERSION,
    TaskSpec,
    overlapping_subjects,
)
from rankscope.data.numbers import ANSWER_MARK, extract_number, gold_number
from rankscope.data.sources import (
    HubSource,
    RawRow,
    legal_from_mmlu,
    read_file,
    read_folder,
    read_hub,
    read_pocket,
)
from rankscope.data.splits import first_of_order, split_rows
from rankscope.errors import BadInput
from rankscope.provenance import sha256_json

__all__ = ["NAMED_TASKS", "LoadedTask", "TaskSpec", "load_task", "overlapping_subjects"]


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task's items, split, with everything its record tells."""

    spec: TaskSpec
    train: tuple[Item, ...]
    selection: tuple[Item, ...]
    report: tuple[Item, ...]
    sha256: str
    """Of the items used, prompts included."""
    dropped: int
    """Rows left out on reading: no completion, or a published flaw."""
    source: str
    """Where the rows came from, for people."""
    leaks: dict[str, int]
    """Report rows also found in train, by kind: exact, ngram13."""
    notes: tuple[str, ...]
    """What a reader of the results must know, one sentence each."""
    leaked_ids: frozenset[str] = frozenset()
    """Items behind ``leaks``: kept for scores without them, which are not reported yet."""
    parts: tuple["LoadedTask", ...] = ()
    """Of a joined task: the tasks that its rows and items are of, each asked its own way."""


class NoSingleNumber(BadInput):
    """The gold answer of a number task is not one number."""


# --- items --------------------------------------------------------------------------------------


def fill_template(template: str, content: RowContent, where: str) -> str:
    """Put a row's fields into a prompt template.

    Only plain ``{name}`` is replaced; nothing is evaluated.

    Raises:
        BadInput: where the template names a field that the row lacks.
    """
    values: dict[str, Any] = {**content.fields, "question": content.question}
    values["options"] = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, content.choices, strict=False)
    )

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if not isinstance(value, str | int | float):
            raise BadInput(
                f"{where}: the prompt template names {{{match[1]}}}, which is no text in this "
                f"row; fields: {', '.join(values)}"
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", value_of, template)


def make_item(content: RowContent, spec: TaskSpec, item_id: str, where: str) -> Item:
    """One row as an item of its task.

    Raises:
        BadInput: where the row cannot be asked or scored as the task says
            (:class:`NoSingleNumber` where its gold answer is not one number).
    """
    if spec.scorer in CHOICE_SCORERS and content.answer is None:
        raise BadInput(f"{where}: scorer {spec.scorer!r} needs rows with choices and an answer")
    reference = content.reference
    if spec.scorer == "number":
        written = content.completion if ANSWER_MARK in content.completion else content.reference
        gold = gold_number(written)
        if gold is None:
            raise NoSingleNumber(
                f"{where}: scorer 'number' found no single number in the answer "
                f"{content.reference[:60]!r}; expected one in digits 0 to 9, as in '#### 18': no "
                "fraction, power, time or list"
            )
        if extract_number(reference) != gold:  # a sign that only its mark tells from a dash
            reference = gold
    completion = content.completion
    if spec.scorer == "option_letter" and content.answer is not None:
        completion = LETTERS[content.answer]
    prompt = content.question
    if not content.messages:
        prompt = fill_template(spec.prompt, content, where)
    return Item(
        item_id=item_id,
        prompt=prompt,
        completion=completion,
        choices=content.choices,
        answer=content.answer,
        subject=content.subject,
        messages=content.messages,
        reference=reference,
        question=content.question,
    )


def _own_spec(config: TaskConfig, content: RowContent) -> TaskSpec:
    """The spec of the user's own data: what the first row allows, unless the study file says."""
    scorer: Scorer = "loss"
    if content.choices:
        scorer = "option_text"
    elif content.reference and content.reference != content.completion.strip():
        scorer = "number"
    scorer = config.scorer or scorer
    default = LETTERED if scorer == "option_letter" else content.template
    if config.prompt is not None and content.messages:
        raise BadInput(
            f"task {config.name!r}: 'prompt' does not apply to rows of messages, which the chat "
            "template renders; remove it"
        )
    return TaskSpec(
        config.name,
        "Own data.",
        scorer,
        config.prompt or default,
        version=WRITTEN_VERSION if scorer in ("number", "exact_match") else 1,
    )


def _named_spec(spec: TaskSpec, config: TaskConfig) -> TaskSpec:
    """A named task with the study file's changes; another scorer brings its own prompt."""
    prompt = config.prompt
    if config.scorer is not None and config.scorer != spec.scorer and spec.name[:6] != "pocket":
        prompt = prompt or (LETTERED if config.scorer == "option_letter" else QUESTION)
    hub = spec.hub
    if hub is not None and config.revision is not None:
        hub = replace(hub, revision=config.revision)
    return replace(spec, scorer=config.scorer or spec.scorer, prompt=prompt or spec.prompt, hub=hub)


# --- loading ------------------------------------------------------------------------------------


def _own_files(config: TaskConfig) -> tuple[dict[str, list[RawRow]], str]:
    """(rows by split file, label) of the user's own files or hub data set."""
    paths = {"train": config.train, "validation": config.selection, "test": config.report}
    given = {split: Path(path).expanduser() for split, path in paths.items() if path is not None}
    if given and config.hub is not None:
        raise BadInput(f"task {config.name!r}: give files or 'hub', not both")
    if given:
        files = {split: read_file(path) for split, path in given.items()}
        return files, ", ".join(str(path) for path in given.values())
    assert config.hub is not None
    source = HubSource(config.hub, revision=config.revision)
    return read_hub(source), source.label


def _named_files(spec: TaskSpec, data_dir: Path | None) -> tuple[dict[str, list[RawRow]], str]:
    """(rows by split file, label) of a named task."""
    if spec.hub is None:
        return read_pocket(spec.name), "pocket world"
    if data_dir is not None:
        folder = data_dir / (spec.folder or spec.name)
        return read_folder(folder), str(folder)
    files = read_hub(spec.hub)
    if spec.name == "legal_mcq":
        files = legal_from_mmlu(files)
    return files, spec.hub.label


def _known_task(config: TaskConfig) -> TaskSpec:
    if config.name in NAMED_TASKS:
        return NAMED_TASKS[config.name]
    close = difflib.get_close_matches(config.name, NAMED_TASKS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise BadInput(
        f"task {config.name!r} is not a named task{hint} Named tasks: {', '.join(NAMED_TASKS)}. "
        "For your own data give 'train:' (a JSONL or Parquet file) or 'hub:'"
    )


OWN_NAMES = {"train": "train", "validation": "selection", "test": "report"}


def _items_of_files(
    spec: TaskSpec, contents: Mapping[str, FileContents], excluded: Collection[str], *, own: bool
) -> tuple[dict[str, list[Item]], int]:
    """(items by file, published rows left out).

    Of a published file up to 1 % may have an answer that is not one number; of own data none.
    """
    items: dict[str, list[Item]] = {}
    flawed = 0
    for file, content in contents.items():
        items[file] = []
        label = OWN_NAMES[file] if own else file
        left_out = 0
        for number, row in content.rows:
            if row.subject in excluded:
                continue
            place = f"{spec.name}/{label}/{number}"
            try:
                items[file].append(make_item(row, spec, place, place))
            except NoSingleNumber:
                left_out += 1
                if own or left_out > MAX_SHARE_WITHOUT_COMPLETION * len(content.rows):
                    raise
        flawed += left_out + content.flawed
    return items, flawed


def load_task(
    config: TaskConfig,
    data_dir: Path | None,
    data_seed: int,
    max_items: int | None = None,
    *,
    exclude_subjects: Collection[str] = (),
) -> LoadedTask:
    """Read, check, render and split one task.

    Args:
        config: the task as the study file names it.
        data_dir: folder with ``<task>/{train,validation,test}.jsonl``; None takes the hub.
        data_seed: seed of the splits and of every limit.
        max_items: at most so many selection and report items each, first of the seeded order.
        exclude_subjects: subjects left out, see ``overlapping_subjects``.

    Raises:
        BadInput: where the rows cannot be had or used; the message names file and row.
    """
    own = config.train or config.selection or config.report or config.hub
    if own:
        files, source = _own_files(config)
    else:
        spec = _named_spec(_known_task(config), config)
        files, source = _named_files(spec, data_dir)
    contents = {file: read_contents(rows, strict=bool(own)) for file, rows in files.items()}
    if own:
        first = next(c.rows[0][1] for c in contents.values() if c.rows)
        spec = _own_spec(config, first)
    if spec.scorer == "option_letter" and not spec.lists_options:
        raise BadInput(
            f"task {spec.name!r}: scorer 'option_letter' needs {{options}} in the prompt, so that "
            "the model sees which letter is which"
        )
    items, flawed = _items_of_files(spec, contents, exclude_subjects, own=bool(own))
    splits = split_rows(spec.name, items, data_seed, own=bool(own))
    name = spec.name
    train = first_of_order(splits.train, config.max_train_rows, data_seed, name, "train")
    selection = first_of_order(splits.selection, max_items, data_seed, name, "selection items")
    report = first_of_order(splits.report, max_items, data_seed, name, "report items")
    leaks = find_leaks(train, report)
    return LoadedTask(
        spec=replace(spec, chance=_chance(spec, report)),
        train=train,
        selection=selection,
        report=report,
        sha256=_sha256(train, selection, report),
        dropped=flawed + sum(c.without_completion for c in contents.values()),
        source=source,
        leaks=leaks.counts,
        notes=splits.notes + _notes(name, contents, flawed, leaks.counts, exclude_subjects),
        leaked_ids=leaks.item_ids,
    )


def _chance(spec: TaskSpec, report: Sequence[Item]) -> float | None:
    """Expected score of guessing among each item's own options."""
    if spec.scorer in CHOICE_SCORERS:
        return sum(1 / len(item.choices) for item in report) / len(report)
    return spec.chance


def _sha256(*splits: Sequence[Item]) -> str:
    names = [field.name for field in fields(Item)]
    rows = [[_plain(getattr(item, name)) for name in names] for split in splits for item in split]
    return sha256_json([[len(split) for split in splits], rows])


def _plain(value: object) -> object:
    """A field of an item as JSON can say it."""
    if isinstance(value, tuple):
        return [[m.role, m.content] if isinstance(m, Message) else m for m in value]
    return value


def _notes(
    name: str,
    contents: Mapping[str, FileContents],
    flawed: int,
    leaks: Mapping[str, int],
    excluded: Collection[str],
) -> tuple[str, ...]:
    notes = []
    missing = sum(c.without_completion for c in contents.values())
    if missing:
        notes.append(f"{name}: {missing} rows have no completion and were left out")
    if flawed:
        notes.append(
            f"{name}: {flawed} published rows cannot be asked as they stand (the right choice "
            "twice, unreadable options, or an answer that is not one number) and were left out"
        )
    if any(leaks.values()):
        notes.append(
            f"{name}: of the report rows {leaks['exact']} stand in train too and "
            f"{leaks['ngram13']} more share 13 words in a row with it"
        )
    if excluded:
        notes.append(f"{name}: left out, since trained on: {', '.join(sorted(excluded))}")
    return tuple(notes)
