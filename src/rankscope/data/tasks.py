"""``load_task``: one task of a study file, read, checked, rendered and split."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rankscope.config.task import TaskConfig
from rankscope.data.contamination import find_contamination
from rankscope.data.fewshot import Pool, keep_apart, pool_of, with_fewshot
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
from rankscope.data.task_spec import check_settings, known_task, named_spec, own_spec
from rankscope.errors import UserError
from rankscope.provenance import sha256_json

__all__ = ["NAMED_TASKS", "LoadedTask", "TaskSpec", "load_task", "overlapping_subjects"]


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task's items, split, with everything its record tells."""

    spec: TaskSpec
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    sha256: str
    """Of the items used, prompts included."""
    dropped: int
    """Rows left out on reading: no completion, or a published flaw."""
    source: str
    """Where the rows came from, for people."""
    contamination: dict[str, int]
    """Test rows also found in train, by kind: exact, ngram13."""
    notes: tuple[str, ...]
    """What a reader of the results must know, one sentence each."""
    contaminated_ids: frozenset[str] = frozenset()
    """Test items that scores are given without, too: those behind ``contamination``."""
    fewshot_source: str = ""
    """Which rows serve as shots, for people; empty where there are none."""
    test_sha256: str = ""
    """Of the test items alone, prompts included."""
    parts: tuple["LoadedTask", ...] = ()
    """Of a joined task: the tasks that its rows and items are of, each asked its own way."""


# --- loading ------------------------------------------------------------------------------------


def _own_files(config: TaskConfig) -> tuple[dict[str, list[RawRow]], str]:
    """(rows by split file, label) of the user's own files or hub data set."""
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if folder.is_file():
            raise UserError(
                f"task {config.name!r}: path {folder} is a file; expected a folder with train, "
                "validation or test files. For one file give 'train:' or 'test:'"
            )
        return read_folder(folder), str(folder)
    paths = {"train": config.train, "validation": config.validation, "test": config.test}
    given = {split: Path(path).expanduser() for split, path in paths.items() if path is not None}
    if given and config.hub is not None:
        raise UserError(f"task {config.name!r}: give files or 'hub', not both")
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
        raise UserError(
            f"task {spec.name!r}: its rows are your own texts; name them ('test: texts.jsonl' "
            f"with a field 'text', or 'test: text.txt'), or put them into {spec.name}/test.jsonl "
            "in data_dir"
        )
    files, source = read_hub(spec.hub)
    if spec.name == "legal_mcq":
        files = legal_from_mmlu(files)
    return files, source


OWN_NAMES = {"train": "train", "validation": "validation", "test": "test", DEV: DEV}


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
    keep_test_whole: bool = False,
    trained: bool = False,
) -> LoadedTask:
    """Read, check, render and split one task.

    Args:
        config: the task as the study file names it.
        data_dir: folder with ``<task>/{train,validation,test}.jsonl``; None takes the hub.
        data_seed: seed of the splits and of every limit.
        max_items: at most so many validation and test items each, first of the seeded order.
        exclude_subjects: subjects left out, see ``overlapping_subjects``.
        keep_test_whole: of a test file alone no validation is cut; every row is a test item.
        trained: the study trains on the task; else training rows that are a collection apart are
            not read.

    Raises:
        UserError: where the rows cannot be had or used; the message names file and row.
    """
    files, spec, source = _read(config, data_dir, trained)
    own = spec is None
    names = {str(k): own_name for k, own_name in (config.fields or {}).items()} or None
    contents = {file: read_contents(rows, strict=own, names=names) for file, rows in files.items()}
    if spec is None:
        first = next(c.rows[0][1] for c in contents.values() if c.rows)
        spec = own_spec(config, first)
    check_settings(spec)
    items, flawed = _items_of_files(spec, contents, exclude_subjects, own=own)
    _check_for_contexts(spec, config, items)
    name = spec.name
    pool = pool_of(spec, items) if spec.num_fewshot else Pool()
    splits = split_rows(name, pool.left(items), data_seed, own=own, keep_test_whole=keep_test_whole)
    train = first_of_order(splits.train, config.max_train_rows, data_seed, name, "train")
    validation = first_of_order(splits.validation, max_items, data_seed, name, "selection items")
    test = first_of_order(splits.test, max_items, data_seed, name, "report items")
    shot_notes: tuple[str, ...] = ()
    if spec.num_fewshot:
        pool = pool.or_train(splits.train, splits.validation + splits.test)
        validation, test, shot_notes = keep_apart(spec, pool, validation, test)
    contamination = find_contamination(train, test)
    if spec.num_fewshot:
        validation = with_fewshot(spec, pool, validation, data_seed)
        test = with_fewshot(spec, pool, test, data_seed)
    return LoadedTask(
        spec=replace(spec, chance=_chance(spec, test)),
        train=train,
        validation=validation,
        test=test,
        sha256=_sha256(train, validation, test),
        dropped=flawed + sum(c.without_completion for c in contents.values()),
        source=source,
        contamination=contamination.counts,
        notes=splits.notes
        + _notes(name, contents, flawed, contamination.counts, exclude_subjects)
        + shot_notes,
        contaminated_ids=contamination.item_ids,
        fewshot_source=pool.source,
        test_sha256=_sha256(test),
    )


def _check_for_contexts(
    spec: TaskSpec, config: TaskConfig, items: Mapping[str, Sequence[Item]]
) -> None:
    """Raise UserError for what options inside a sentence have no use for."""
    if any(item.contexts for rows in items.values() for item in rows):
        where = f"task {spec.name!r}: its options stand inside the sentence, so"
        if config.prompt is not None:
            raise UserError(f"{where} 'prompt' does not apply; remove it")
        if spec.primary_metric not in (None, "acc"):
            raise UserError(
                f"{where} 'primary_metric' cannot be {spec.primary_metric!r}; expected 'acc'"
            )


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
    if config.path or config.train or config.validation or config.test or config.hub:
        files, source = _own_files(config)
        return files, None, source
    spec = named_spec(known_task(config), config)
    if spec.hub is not None and spec.hub.train_is_separate_collection and not trained:
        spec = replace(spec, hub=replace(spec.hub, train=None))
    files, source = _named_files(spec, data_dir)
    return files, spec, source


def _chance(spec: TaskSpec, test: Sequence[Item]) -> float | None:
    """Expected score of guessing among each item's own options."""
    if spec.scorer in CHOICE_SCORERS:
        return sum(1 / len(item.choices) for item in test) / len(test)
    return spec.chance


def _sha256(*splits: Sequence[Item]) -> str:
    """Hash of items as they are scored; shots, which many share, are told once."""
    apart = ("contexts", "fewshot", "where")
    names = [field.name for field in fields(Item) if field.name not in apart]
    rows: list[Any] = []
    told: dict[Any, int] = {}
    for item in (item for split in splits for item in split):
        row = [_plain(getattr(item, name)) for name in names]
        if item.contexts:
            row.append(item.contexts)
        if item.fewshot:
            row.append({"shots": told.setdefault(item.fewshot, len(told))})
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
    contamination: Mapping[str, int],
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
    if any(contamination.values()):
        notes.append(
            f"{name}: of the test rows {contamination['exact']} stand in train too and "
            f"{contamination['ngram13']} more share 13 words in a row with it"
        )
    if excluded:
        notes.append(f"{name}: left out, since trained on: {', '.join(sorted(excluded))}")
    return tuple(notes)
