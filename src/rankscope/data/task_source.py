"""The place of a task's rows (files, a hub data set, a program), and the task's spec.

Rows are located before anything is loaded, and read afterward.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.data.hub import HubSource, read_hub
from rankscope.data.items import Item
from rankscope.data.registry import LETTERED_PROMPT, TaskSpec, named_tasks
from rankscope.data.rows import QUESTION_PROMPT
from rankscope.data.sources import SplitRows, check_file, read_file, split_paths
from rankscope.errors import UserError, did_you_mean
from rankscope.evaluate.scorers import get_scorer, scorers


@dataclass(frozen=True, slots=True)
class _RowSource:
    read: Callable[[], tuple[SplitRows, str]]
    """Function that returns the rows by file, and a label of their source."""
    spec: TaskSpec | None = None  # Description of a named task; None for the user's own data
    is_hub: bool = False
    files: frozenset[str] | None = None
    """Which of train, validation, test and dev exist; None if that is unknown."""


def locate_rows(config: TaskConfig, data_dir: str | Path | None, *, trained: bool) -> _RowSource:
    """Find the rows of a task without reading them.

    Args:
        trained: the study trains on the task. Otherwise training rows that are a separate
            collection are not read.

    Raises UserError: a missing file, an unreadable kind of file, or an unknown task.
    """
    where = f"task {config.name!r}"
    is_named = config.name in named_tasks()
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if folder.is_file():
            rule = "a folder with train, validation or test files"
            do = "for one file give 'train:' or 'test:'"
            raise UserError(where, f"the file {folder} as 'path'", rule, do)
        spec = _named_spec(config) if is_named else None
        return _in_files(split_paths(folder), str(folder), spec)
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    paths = {split: Path(path).expanduser() for split, path in given.items() if path is not None}
    if paths and config.hub is not None:
        raise UserError(where, "files and 'hub'", "one source of the rows", "remove one")
    if paths:
        label = ", ".join(map(str, paths.values()))
        return _in_files(paths, label)
    if config.hub is not None:
        own = HubSource(config.hub, revision=config.revision)
        return _RowSource(partial(read_hub, own), is_hub=True)
    return _locate_named_rows(_named_spec(config), data_dir, trained)


def _locate_named_rows(spec: TaskSpec, data_dir: str | Path | None, trained: bool) -> _RowSource:
    if spec.read is not None:
        return _RowSource(spec.read, spec)
    if data_dir is not None:
        folder = Path(data_dir) / (spec.folder or spec.name)
        return _in_files(split_paths(folder), str(folder), spec)
    if spec.hub is None:
        do = "name them ('test: text.txt', or 'test: texts.jsonl' with a field 'text')"
        raise UserError(f"task {spec.name!r}", "no rows", "your own texts", do)
    hub = spec.hub
    if hub.train_is_separate_collection and not trained:
        hub = replace(hub, train=None)

    def read() -> tuple[SplitRows, str]:
        files, source = read_hub(hub)
        return (files if spec.from_hub is None else spec.from_hub(files)), source

    files = None if spec.from_hub else frozenset(hub.splits)  # a task cut from another's rows
    return _RowSource(read, replace(spec, hub=hub), is_hub=True, files=files)


def _in_files(paths: dict[str, Path], label: str, spec: TaskSpec | None = None) -> _RowSource:
    for path in paths.values():
        check_file(path)
    return _RowSource(
        lambda: ({split: read_file(path) for split, path in paths.items()}, label),
        spec,
        files=frozenset(paths),
    )


# --- the rows of a study ------------------------------------------------------------------------


def _needed_tasks(config: StudyConfig) -> list[TaskConfig]:
    """List every task whose rows a study reads, parts of mixtures and replayed tasks included."""
    described = config.evaluation_tasks()
    names = dict.fromkeys([*config.trained_tasks(), *config.replayed_tasks()])
    plain = [t for t in described.values() if not t.mixture and t.source is None]
    others = [TaskConfig(name=name) for name in names if name not in described]
    return [*plain, *others]


def missing_rows(config: StudyConfig) -> Iterator[UserError]:
    """Yield the faults of the places of a study's rows, by task."""
    trained = config.trained_tasks()
    for task in _needed_tasks(config):
        where = f"task {task.name!r}"
        try:
            files = locate_rows(task, config.data_dir, trained=True).files
            if task.name in trained and files is not None and "train" not in files:
                yield no_training_rows(task.name, f"only {', '.join(sorted(files))}")
        except UserError as error:
            if not error.where.startswith(where):
                error.where = f"{where}: {error.where}"
            yield error


def no_training_rows(task: str, source: str) -> UserError:
    return UserError(
        f"task {task!r}",
        f"no training rows ({source}), although it is trained on",
        "a file of them ('train:' in the task, or train.jsonl in its folder)",
        "add it, or only evaluate the task: move it from 'tasks' to 'evaluate.cross_domain'",
    )


def check_sources(config: StudyConfig) -> None:
    """Refuse missing files and files of an unreadable kind, before anything is loaded."""
    problems = list({str(problem): problem for problem in missing_rows(config)}.values())
    if len(problems) == 1:
        raise problems[0]
    if problems:
        found = f"{len(problems)} tasks whose rows cannot be used"
        raise UserError("study", found, do="correct them", faults=problems)


def hub_tasks(config: StudyConfig) -> list[str]:
    """Name the tasks of a study whose rows are on the hub; missing files must be ruled out
    before."""
    return [
        task.name
        for task in _needed_tasks(config)
        if locate_rows(task, config.data_dir, trained=True).is_hub
    ]


# --- specs --------------------------------------------------------------------------------------


def _named_spec(config: TaskConfig) -> TaskSpec:
    """Return a named task with the study file's changes; another scorer brings its own prompt."""
    if (spec := named_tasks().get(config.name)) is None:
        hint = did_you_mean(config.name, named_tasks())
        known = f"one of {', '.join(named_tasks())}"
        do = hint or "for your own data give 'train:' (a file of rows) or 'hub:'"
        raise UserError(f"task {config.name!r}", "no task of this name", known, do)
    changes = _common_settings(config)
    if config.scorer in (None, spec.scorer):
        changes["primary_metric"] = config.primary_metric or spec.primary_metric
    else:
        changes["scorer"] = config.scorer
        if spec.scorer_sets_prompt:
            lists_options = get_scorer(config.scorer).needs_listed_options
            changes["prompt"] = LETTERED_PROMPT if lists_options else QUESTION_PROMPT
    if config.prompt:
        changes["prompt"] = config.prompt
    if spec.hub is not None and config.revision is not None:
        changes["hub"] = replace(spec.hub, revision=config.revision)
    return replace(spec, **changes)


def own_spec(config: TaskConfig, contents: Sequence[Item]) -> TaskSpec:
    """Make the spec of the user's own data.

    Settings that the study file leaves open follow from the rows' common shape, and from the look
    of most answers.
    """
    first = contents[0]
    marked = sum(c.reference not in ("", c.completion.strip()) for c in contents)
    if config.prompt is not None and first.messages:
        found = "'prompt' for rows of messages, which the chat template renders"
        raise UserError(f"task {config.name!r}", found, "none", "remove it")
    default = "loss"
    if first.choices:
        is_pair = {"chosen", "rejected"} <= first.fields.keys()
        of_pairs = [s.name for s in scorers().values() if is_pair and s.compares_with_base]
        default = next(iter(of_pairs), "option_text")
    elif 2 * marked > len(contents):
        default = "number"
    elif config.name == "perplexity" and first.completion and not first.question:
        default = "perplexity"
    scorer = get_scorer(config.scorer or default)
    default = LETTERED_PROMPT if scorer.needs_listed_options else first.template
    prompt, common = config.prompt or default, _common_settings(config)
    return TaskSpec(config.name, "Own data.", scorer.name, prompt, scorer.version, **common)


def _common_settings(config: TaskConfig) -> dict[str, Any]:
    own = config.model_dump(include={"num_fewshot", "primary_metric", "extract"})
    return {**own, "stop": tuple(config.stop)}
