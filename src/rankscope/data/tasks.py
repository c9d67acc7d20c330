"""``load_task``: one task of a study file, read, checked, rendered and split."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankscope.config.study import TaskConfig
from rankscope.data.contamination import find_leaks
from rankscope.data.fewshot import Pool, keep_apart, pool_of, with_shots
from rankscope.data.formats import MAX_SHARE_WITHOUT_COMPLETION, FileContents, read_contents
from rankscope.data.items import Item, Message
from rankscope.data.prompts import NoSingleNumber, make_item
from rankscope.data.registry import (
    CHOICE_SCORERS,
    NAMED_TASKS,
    TaskSpec,
    overlapping_subjects,
)
from rankscope.data.sources import (
    DEV,
    HubSource,
    RawRow,
    legal_from_mmlu,
    read_file,
    read_folder,
    read_hub,
    read_pocket,
)
from rankscope.data.splits import first_of_order, split_rows
from rankscope.data.task_spec import known_task, named_spec, own_spec, refuse_settings
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
    """Report items that scores are given without, too: those behind ``leaks``."""
    shots_source: str = ""
    """Which rows serve as shots, for people; empty where there are none."""
    report_sha256: str = ""
    """Of the report items alone, prompts included."""
    parts: tuple["LoadedTask", ...] = ()
    """Of a joined task: the tasks that its rows and items are of, each asked its own way."""


# --- loading ------------------------------------------------------------------------------------


def _own_files(config: TaskConfig) -> tuple[dict[str, list[RawRow]], str]:
    """(rows by split file, label) of the user's own files or hub data set."""
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if folder.is_file():
            raise BadInput(
                f"task {config.name!r}: path {folder} is a file; expected a folder with train, "
                "validation or test files. For one file give 'train:' or 'report:'"
            )
        return read_folder(folder), str(folder)
    paths = {"train": config.train, "validation": config.selection, "test": config.report}
    given = {split: Path(path).expanduser() for split, path in paths.items() if path is not None}
    if given and config.hub is not None:
        raise BadInput(f"task {config.name!r}: give files or 'hub', not both")
    if given:
        files = {split: read_file(path) for split, path in given.items()}
        return files, ", ".join(str(path) for path in given.values())
    assert config.hub is not None
    return read_hub(HubSource(config.hub, revision=config.revision))


def _named_files(spec: TaskSpec, data_dir: Path | None) -> tuple[dict[str, list[RawRow]], str]:
    """(rows by split file, label) of a named task."""
    if spec.name.startswith("pocket_"):
        return read_pocket(spec.name), "pocket world"
    if data_dir is not None:
        folder = data_dir / (spec.folder or spec.name)
        return read_folder(folder), str(folder)
    if spec.hub is None:
        raise BadInput(
            f"task {spec.name!r}: its rows are your own texts; name them ('report: texts.jsonl' "
            f"with a field 'text', or 'report: text.txt'), or put them into {spec.name}/test.jsonl "
            "in data_dir"
        )
    files, source = read_hub(spec.hub)
    if spec.name == "legal_mcq":
        files = legal_from_mmlu(files)
    return files, source


OWN_NAMES = {"train": "train", "validation": "selection", "test": "report", DEV: DEV}


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
        for row, said in content.rows:
            if said.subject in excluded:
                continue
            item_id = f"{spec.name}/{label}/{row.number}"
            try:
                items[file].append(make_item(said, spec, item_id, row.where))
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
    nothing_is_chosen: bool = False,
    trained: bool = False,
) -> LoadedTask:
    """Read, check, render and split one task.

    Args:
        config: the task as the study file names it.
        data_dir: folder with ``<task>/{train,validation,test}.jsonl``; None takes the hub.
        data_seed: seed of the splits and of every limit.
        max_items: at most so many selection and report items each, first of the seeded order.
        exclude_subjects: subjects left out, see ``overlapping_subjects``.
        nothing_is_chosen: of a report file alone no selection is cut; every row is a report item.
        trained: the study trains on the task; else training rows that are a collection apart are
            not read.

    Raises:
        BadInput: where the rows cannot be had or used; the message names file and row.
    """
    files, spec, source = _read(config, data_dir, trained)
    own = spec is None
    names = {str(k): own_name for k, own_name in (config.fields or {}).items()} or None
    contents = {file: read_contents(rows, strict=own, names=names) for file, rows in files.items()}
    if spec is None:
        first = next(c.rows[0][1] for c in contents.values() if c.rows)
        spec = own_spec(config, first)
    refuse_settings(spec)
    items, flawed = _items_of_files(spec, contents, exclude_subjects, own=own)
    _refuse_for_contexts(spec, config, items)
    name = spec.name
    pool = pool_of(spec, items) if spec.shots else Pool()
    splits = split_rows(
        name, pool.left(items), data_seed, own=own, nothing_is_chosen=nothing_is_chosen
    )
    train = first_of_order(splits.train, config.max_train_rows, data_seed, name, "train")
    selection = first_of_order(splits.selection, max_items, data_seed, name, "selection items")
    report = first_of_order(splits.report, max_items, data_seed, name, "report items")
    shot_notes: tuple[str, ...] = ()
    if spec.shots:
        pool = pool.or_train(splits.train, splits.selection + splits.report)
        selection, report, shot_notes = keep_apart(spec, pool, selection, report)
    leaks = find_leaks(train, report)
    if spec.shots:
        selection = with_shots(spec, pool, selection, data_seed)
        report = with_shots(spec, pool, report, data_seed)
    return LoadedTask(
        spec=replace(spec, chance=_chance(spec, report)),
        train=train,
        selection=selection,
        report=report,
        sha256=_sha256(train, selection, report),
        dropped=flawed + sum(c.without_completion for c in contents.values()),
        source=source,
        leaks=leaks.counts,
        notes=splits.notes
        + _notes(name, contents, flawed, leaks.counts, exclude_subjects)
        + shot_notes,
        leaked_ids=leaks.item_ids,
        shots_source=pool.source,
        report_sha256=_sha256(report),
    )


def _refuse_for_contexts(
    spec: TaskSpec, config: TaskConfig, items: Mapping[str, Sequence[Item]]
) -> None:
    """Raise BadInput for what options inside a sentence have no use for."""
    if any(item.contexts for rows in items.values() for item in rows):
        where = f"task {spec.name!r}: its options stand inside the sentence, so"
        if config.prompt is not None:
            raise BadInput(f"{where} 'prompt' does not apply; remove it")
        if spec.headline not in (None, "acc"):
            raise BadInput(f"{where} 'headline' cannot be {spec.headline!r}; expected 'acc'")


def _read(
    config: TaskConfig, data_dir: Path | None, trained: bool
) -> tuple[dict[str, list[RawRow]], TaskSpec | None, str]:
    """(rows by file, the named task's spec or None for one's own data, label)."""
    is_named = config.name in NAMED_TASKS
    if config.path is not None and is_named:
        return (
            read_folder(Path(config.path).expanduser()),
            named_spec(known_task(config), config),
            config.path,
        )
    if config.path or config.train or config.selection or config.report or config.hub:
        files, source = _own_files(config)
        return files, None, source
    spec = named_spec(known_task(config), config)
    if spec.hub is not None and spec.hub.train_is_apart and not trained:
        spec = replace(spec, hub=replace(spec.hub, train=None))
    files, source = _named_files(spec, data_dir)
    return files, spec, source


def _chance(spec: TaskSpec, report: Sequence[Item]) -> float | None:
    """Expected score of guessing among each item's own options."""
    if spec.scorer in CHOICE_SCORERS:
        return sum(1 / len(item.choices) for item in report) / len(report)
    return spec.chance


def _sha256(*splits: Sequence[Item]) -> str:
    """Hash of items as they are scored; shots, which many share, are told once."""
    apart = ("contexts", "shots", "where")
    names = [field.name for field in fields(Item) if field.name not in apart]
    rows: list[Any] = []
    told: dict[Any, int] = {}
    for item in (item for split in splits for item in split):
        row = [_plain(getattr(item, name)) for name in names]
        if item.contexts:
            row.append(item.contexts)
        if item.shots:
            row.append({"shots": told.setdefault(item.shots, len(told))})
        rows.append(row)
    sizes: list[Any] = [len(split) for split in splits]
    return sha256_json([[*sizes, *([list(told)] if told else [])], rows])


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
