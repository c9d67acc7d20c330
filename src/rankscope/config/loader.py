"""The study file at the door: YAML in; a checked ``StudyConfig``, or every fault with its line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankscope.config.overrides import apply_override
from rankscope.config.study import StudyConfig
from rankscope.config.task_file import with_task_files
from rankscope.config.validation import (
    Fault,
    Words,
    joined,
    read_nodes,
    validated,
    with_absolute_paths,
)
from rankscope.config.yaml_lines import PlainValues, dump
from rankscope.errors import UserError

STUDY_WORDS = Words(
    "study file", "'model:', 'tasks:' and 'arms:'", "write one with 'rankscope init {path}'"
)


def load_study_file(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file and apply ``--set`` overrides such as ``train.epochs=1``, in order.

    Relative paths in the file are taken from the file's folder, those in overrides from the
    working directory; the result holds absolute paths, and in place of a task file what it says.
    Raises UserError with every fault of the file and the overrides, one a line:
    ``study.yaml:12: arms.0.lora_rnak: unknown key; did you mean 'rank'?``.
    """
    root = read_nodes(path, STUDY_WORDS)
    faults: list[Fault] = []
    for override in overrides:
        try:
            apply_override(root, override)
        except UserError as error:
            faults.append((1, 0, str(error)))
    values = PlainValues()
    folder = path.absolute().parent
    raw, found = with_task_files(values.read(root), root, folder)
    faults += found
    config, found = validated(root, values, raw, StudyConfig)
    faults += found
    if faults or config is None:
        raise UserError(joined(faults))
    return with_absolute_paths(config, root, (), folder)


def dump_study(config: StudyConfig) -> str:
    """Canonical YAML of a study, every default written out; it loads back to an equal config."""
    values = config.model_dump(mode="json", exclude_none=True)
    for arm, written in zip(config.arms, values["arms"], strict=True):
        for key in arm.unused_fields():
            written.pop(key, None)
        if arm.init_from is not None:  # what the arm leaves out is the adapter's, not a default
            for key in {"method", "rank", "alpha", "targets"} - arm.model_fields_set:
                del written[key]
    return dump(values)


def study_json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the study file, short forms included."""
    schema = StudyConfig.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Rankscope study file",
    }


def published_schema() -> str:
    """The JSON schema of the study file as published in docs/study.schema.json."""
    return json.dumps(study_json_schema(), indent=2, ensure_ascii=False) + "\n"
