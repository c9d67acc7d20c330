"""Loading and writing study files and task files.

A file becomes a checked section, or one error that lists every fault with its line.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankscope.config.arm import adapter_fields
from rankscope.config.overrides import OVERRIDE, apply_override
from rankscope.config.section import Location
from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig, is_task_file
from rankscope.config.validation import (
    Fault,
    FileKind,
    absolute_path,
    fault_at,
    join_faults,
    read_yaml,
    validate,
    with_absolute_paths,
)
from rankscope.config.yaml_lines import Document, dump
from rankscope.errors import UserError

STUDY_FILE = FileKind(
    "study file", "'model:', 'tasks:' and 'arms:'", "write one with 'rankscope init {path}'"
)
TASK_FILE = FileKind(
    "task file",
    "'name:', 'test:' and 'scorer:'",
    "write one with 'name:' and the place of the rows, such as 'test: rows.jsonl' (docs/tasks.md)",
)


def load_study_file(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file and apply ``--set`` overrides such as ``train.epochs=1``, in order.

    Relative paths of the file start at its folder, those of overrides at the working directory; the
    result has absolute paths, and task files are replaced by their content. Raises UserError: every
    fault of the file and the overrides, one per line, such as ``study.yaml:12: arms.0.rank.0: found
    0, expected greater than or equal to 1; correct it``.
    """
    document = read_yaml(path, STUDY_FILE)
    faults: list[Fault] = []
    for override in overrides:
        try:
            apply_override(document, override)
        except UserError as error:
            faults.append(Fault(True, 0, str(error)))
    folder = path.absolute().parent
    faults += _insert_task_files(document, folder)
    config, more_faults = validate(document, StudyConfig)
    faults += more_faults
    if faults or config is None:
        raise UserError(join_faults(faults))
    return with_absolute_paths(config, document, (), folder)


def load_task_file(path: Path) -> TaskConfig:
    """Read a task file; relative paths in it start at its folder."""
    document = read_yaml(path, TASK_FILE)
    config, faults = validate(document, TaskConfig)
    if config is not None and is_task_file(config.path):
        problem = "path: a task file cannot name another; write it out here"
        faults.append(fault_at(document.mark_at(("path",)), problem))
    if faults or config is None:
        raise UserError(join_faults(faults))
    return with_absolute_paths(config, document, (), path.absolute().parent)


def _insert_task_files(document: Document, folder: Path) -> list[Fault]:
    """Replace the task files that a study names by their content; relative paths start at folder.

    Keys beside ``path`` in the study override those of the task file.
    """
    faults: list[Fault] = []
    for tasks, location in _task_lists(document.values):
        for index, task in enumerate(tasks):
            path = task.get("path") if isinstance(task, dict) else task
            if not isinstance(path, str) or not is_task_file(path):
                continue
            mark = document.mark_at((*location, index))
            start = Path.cwd() if mark.source.startswith(OVERRIDE) else folder
            try:
                loaded = load_task_file(Path(absolute_path(path, start)))
            except UserError as error:
                faults.append(Fault(False, mark.line, str(error)))
                continue
            given = {k: v for k, v in task.items() if k != "path"} if task != path else {}
            tasks[index] = {**loaded.model_dump(exclude_unset=True), **given}
    return faults


def _task_lists(raw: Any) -> Iterator[tuple[list[Any], Location]]:
    """The lists of a study's plain values that contain tasks, with their locations."""
    for location in (("tasks",), ("evaluate", "cross_domain"), ("evaluate", "retention")):
        value = raw
        for key in location:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, list):
            yield value, location


def dump_study(config: StudyConfig) -> str:
    """Canonical YAML of a study with every default written out; it loads back as ``config``."""
    return dump(study_values(config))


def study_values(config: StudyConfig) -> dict[str, Any]:
    """The same as JSON-compatible values, which validate to an equal ``StudyConfig``."""
    values = config.model_dump(mode="json", exclude_none=True)
    for arm, written in zip(config.arms, values["arms"], strict=True):
        for key in adapter_fields() - arm.own_fields():
            written.pop(key, None)
        if arm.init_from is not None:  # keys that the arm leaves out are the adapter's, no defaults
            for key in {"method", "rank", "alpha", "targets"} - arm.model_fields_set:
                del written[key]
    return values


def study_json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the study file, short forms included."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **StudyConfig.model_json_schema(),
        "title": "Rankscope study file",
    }


def published_schema() -> str:
    return json.dumps(study_json_schema(), indent=2, ensure_ascii=False) + "\n"
