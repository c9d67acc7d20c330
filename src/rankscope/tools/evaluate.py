"""``rankscope eval``: a study of given models without arms, whose tasks are only scored.

It writes the folder of a study. Scores in it are not computed again, and ``status``, ``verify``,
``report`` and ``rankscope.load`` read it.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from pydantic import ValidationError

from rankscope.analyses import all_analyses
from rankscope.config.loader import described, fault_at, load_task_file
from rankscope.config.section import dotted
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.config.task import TaskConfig, is_task_file
from rankscope.data.task_source import check_sources
from rankscope.errors import UserError, reading
from rankscope.filesystem import output_folder, user_path
from rankscope.models.model_folder import check_tuned_folder, model_folder
from rankscope.progress import ProgressReporter
from rankscope.records import ModelScore, StudyRecords
from rankscope.run.study import Study
from rankscope.sources import source_of


def score(
    model: str,
    tasks: Sequence[str],
    adapters: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    out: Path | None = None,
    *,
    num_fewshot: int | None = None,
    any_base: bool = False,
    reporter: ProgressReporter | None = None,
    **evaluate: object,
) -> tuple[StudyRecords, list[ModelScore]]:
    """Score a model and its adapters on tasks; scores that ``out`` already holds are kept.

    Returns the records, and the scores task by task, the base first, then adapters as given.

    Args:
        model: a folder, a hub id or ``pocket``.
        tasks: named tasks, task files, files and folders of rows, or ``SOURCE:NAME``.
        adapters: folders of PEFT adapters, or of checkpoints of the model's architecture.
        settings: keys of a study file, such as ``device``.
        out: the folder of the study; a temporary one if None.
        num_fewshot: examples before each question; None keeps each task's own number.
        any_base: accept adapters that record another base.
        reporter: receives progress; silent by default.
        evaluate: keys of that section of a study file, such as ``split`` and ``max_items``.

    Raises:
        UserError: a model, adapter, task, split or row cannot be used, or ``out`` cannot be written
            to; nothing is written then.
        IntegrityError: results in ``out`` were altered.
    """
    if not tasks:
        raise UserError("--tasks", "no tasks were given", "names such as arc_easy,mmlu")
    split = str(evaluate.setdefault("split", "test"))
    scored = [config for text in tasks for config in _task_configs(text, split, num_fewshot)]
    names = [task.name for task in scored]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("--tasks", f"task {repeated[0]!r} is given twice", "each once")
    unanalyzed = {a.name: {"enabled": False} for a in all_analyses() if a.section == "analyze"}
    values = {"name": "eval", "evaluate": {"cross_domain": scored, **evaluate}}
    values["analyze"] = unanalyzed
    config = given_study(values, settings or {}, model, adapters, any_base)
    model_folder(config.model)  # before torch is imported, which takes seconds
    for given in config.given or ():
        check_tuned_folder(user_path(given.folder))
    check_sources(config)
    made = tempfile.TemporaryDirectory() if out is None else nullcontext(str(out))
    with output_folder(out), made as folder:
        records = Study(config).run(folder, reporter)
        from rankscope.advise.comparisons import model_scores  # scipy

        return records, list(model_scores(records))  # before a temporary folder goes with its items


def given_study(
    values: Mapping[str, object],
    settings: Mapping[str, object],
    model: str,
    folders: Sequence[str],
    any_base: bool,
) -> StudyConfig:
    """Make a study of the models in ``folders``.

    ``values`` are those of its file, unless ``settings`` give others. Raises UserError: its first
    fault.
    """
    given = [{"path": str(user_path(folder).absolute()), "force": any_base} for folder in folders]
    base, source = user_path(model), ModelConfig.from_short_form(model)
    if base.is_dir() and model != "pocket":
        source = {"path": str(base.absolute())}
    merged: dict[str, object] = {"model": source, "given": given or None, **values}
    for key, value in settings.items():
        own = merged.get(key)
        is_section = isinstance(own, dict) and isinstance(value, Mapping)
        merged[key] = {**own, **value} if is_section else value  # type: ignore[dict-item]
    try:
        return StudyConfig.model_validate(merged)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = dotted(fault["loc"]) or str(values["name"])
        raise fault_at(described(fault, StudyConfig), place) from error


def _task_configs(text: str, split: str, num_fewshot: int | None) -> list[TaskConfig]:
    """Read one of ``--tasks``.

    It is a named task, a task file, a file or folder of rows, or a name of a source. Named tasks
    contain neither a slash nor a dot, so any text with one is a path. Raises UserError: there is no
    such file.
    """
    changes: dict[str, object] = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
    if (source := source_of(text)) is not None:
        return [config.model_copy(update=changes) for config in source.tasks(text)]
    path = user_path(text)
    if is_task_file(text):
        config = load_task_file(path)
        if config.mixture:
            parts = ", ".join(config.mixture)
            found = "a mixture, which is for training tasks of a study"
            expected = "tasks to score"
            raise UserError(f"task {text}", found, expected, f"give its tasks to --tasks: {parts}")
        return [config.model_copy(update=changes)]
    values: dict[str, object] = {"name": text, **changes}
    if text.startswith("~") or set(text) & {"/", os.sep, "."}:
        if not path.exists():
            found = "no such file or folder"
            do = "to use a data set of the hub, name it in a task file ('hub: owner/name')"
            raise UserError(f"task {text}", found, "a file or folder of rows", do)
        key = "path" if path.is_dir() else "test"
        if key == "test" and split == "validation":
            found = "a file of rows, which is scored whole and has no validation split"
            do = "leave out --split, or name the rows in a task file ('validation: rows.jsonl')"
            raise UserError(f"task {text}", found, "--split test", do)
        stem = path.resolve().name if path.is_dir() else path.stem
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)
        values |= {"name": name, key: str(path.absolute())}
    with reading(f"task {text!r}", "a task"):
        return [TaskConfig.model_validate(values)]
