"""A task in a YAML file of its own: what may stand under one task of a study file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rankscope.config.overrides import OVERRIDE
from rankscope.config.task import LM_EVAL_PREFIX, TASK_FILES, TaskConfig
from rankscope.config.validation import (
    Fault,
    Words,
    absolute,
    fault_at,
    joined,
    read_nodes,
    validated,
    with_absolute_paths,
)
from rankscope.config.yaml_lines import Location, PlainValues, mark_at
from rankscope.errors import UserError

TASK_WORDS = Words(
    "task file",
    "'name:', 'test:' and 'scorer:'",
    "write one: 'name:' and where the rows are, such as 'test: rows.jsonl' (docs/tasks.md)",
)


def load_task_file(path: Path) -> TaskConfig:
    """Read a task file; relative paths in it start at its folder.

    Raises:
        UserError: every fault of the file, one a line, each with its line number.
    """
    root = read_nodes(path, TASK_WORDS)
    values = PlainValues()
    config, faults = validated(root, values, values.read(root), TaskConfig)
    if config is not None and is_task_file(config.path):
        mark = mark_at(root, ("path",))
        faults.append(fault_at(mark, "path: a task file cannot name another; write it out here"))
    if faults or config is None:
        raise UserError(joined(faults))
    return with_absolute_paths(config, root, (), path.absolute().parent)


def is_task_file(text: object) -> bool:
    """Whether a text in the place of a task, or of its path, names a task file."""
    is_file = isinstance(text, str) and text.lower().endswith(TASK_FILES)
    return is_file and not str(text).startswith(LM_EVAL_PREFIX)


def with_task_files(raw: Any, root: yaml.Node, folder: Path) -> tuple[Any, list[Fault]]:
    """A study's plain values with what task files say in their places; and their faults.

    What stands beside ``path`` in the study wins over the file.

    Args:
        raw: as read from ``root``; what is no study is left as it is.
        folder: where relative paths start.
    """
    faults: list[Fault] = []
    for tasks, location in task_lists(raw):
        for index, task in enumerate(tasks):
            written = task.get("path") if isinstance(task, dict) else task
            if not isinstance(written, str) or not is_task_file(written):
                continue
            mark = mark_at(root, (*location, index))
            start = Path.cwd() if mark.name.startswith(OVERRIDE) else folder
            try:
                told = load_task_file(Path(absolute(written, start)))
            except UserError as error:
                faults.append((0, mark.line, str(error)))
                continue
            beside = {k: v for k, v in task.items() if k != "path"} if task != written else {}
            tasks[index] = {**told.model_dump(exclude_unset=True), **beside}
    return raw, faults


def task_lists(raw: Any) -> Iterator[tuple[list[Any], Location]]:
    """The lists of a study's plain values that hold tasks, with their places."""
    if not isinstance(raw, dict):
        return
    evaluate = raw.get("evaluate")
    places: list[tuple[Any, Location]] = [(raw.get("tasks"), ("tasks",))]
    if isinstance(evaluate, dict):
        places += [(evaluate.get(k), ("evaluate", k)) for k in ("cross_domain", "retention")]
    for tasks, location in places:
        if isinstance(tasks, list):
            yield tasks, location
