"""What is to be scored, as it was asked for: models, adapters, tasks and split, checked first."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from rankscope.config.loader import load_task_file
from rankscope.config.study import DEVICE_PATTERN, EvaluateConfig, ModelConfig
from rankscope.config.task import LM_EVAL_PREFIX, TaskConfig, is_task_file
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.folder import (
    adapter_sha256,
    check_other_base,
    load_adapter,
    recorded_base,
)
from rankscope.models.adapters.settings import CONFIG, WEIGHTS, read_adapter_config
from rankscope.models.adapters.warm_start import check_adapter_shapes
from rankscope.models.parameters import architecture, read_model_config
from rankscope.records import BASE, Split


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What is to be scored.

    Attributes:
        model: a folder, a hub id, a fetched model's name or ``pocket``.
        adapters: folders in PEFT's format.
        tasks: names, task files, files and folders of rows, or ``lm_eval:NAME``.
        data_dir: folder with the named tasks' rows; None takes the hub.
        split: which items.
        shots: of every task; None leaves what the task says.
        force: take adapters that say they were made for other weights.
        trust_task_code: let the files of harness tasks run the Python that they name.
    """

    model: str
    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    data_dir: Path | None = None
    split: str = "test"
    num_fewshot: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    prompt_format: str = "auto"
    data_seed: int = 0
    force: bool = False
    trust_task_code: bool = False
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk that may be scored on the model at hand."""

    label: str
    folder: Path
    sha256: str
    is_lora: bool
    recorded_base: str | None
    is_forced: bool
    """It says that it was made for other weights, and is scored all the same."""


PromptFormat = Literal["auto", "chat", "plain"]
PROMPT_FORMATS: tuple[PromptFormat, ...] = ("auto", "chat", "plain")
Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16")
DEVICE = re.compile(DEVICE_PATTERN)

Choice = TypeVar("Choice", bound=str)


def one_of(value: str, known: Sequence[Choice], option: str) -> Choice:
    """The value of an option that takes a few words.

    Raises:
        UserError: it is none of them.
    """
    for word in known:
        if word == value:
            return word
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    raise UserError(f"{option} {value!r}{hint} Expected one of: {', '.join(known)}")


def evaluation_settings(**values: Any) -> EvaluateConfig:
    """The engine's settings out of options.

    Raises:
        UserError: a value that cannot be used.
    """
    one_of(values.get("too_long", "refuse"), ("refuse", "truncate_left"), "--too-long")
    try:
        return EvaluateConfig.model_validate(values)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, said['loc']))}: {said['msg']}") from error


def checked_split(name: str) -> Split:
    """The split so called.

    Raises:
        UserError: there is none.
    """
    if name == "test":
        return "test"
    if name == "validation":
        return "validation"
    hint = "test" if name.lower().startswith("t") else "validation"
    raise UserError(
        f"split {name!r}: there is no such split; did you mean {hint!r}? expected 'test' or 'validation'"
    )


def model_config(model: str, prompt_format: PromptFormat) -> ModelConfig:
    """The model as a study file would have it.

    Raises:
        UserError: it names nothing that can be looked for.
    """
    local = Path(model).expanduser()
    if local.is_file():
        raise UserError(f"model {model}: is a file; expected a folder, a hub id or a model's name")
    value: dict[str, object] = {"prompt_format": prompt_format}
    try:
        if local.is_dir() and model != "pocket":
            value["path"] = str(local)
        else:
            value |= ModelConfig.from_short_form(model)
        return ModelConfig.model_validate(value)
    except ValidationError as error:
        raise UserError(f"model {model!r}: no such folder, and not a model's name") from error


def task_config(text: str, num_fewshot: int | None) -> TaskConfig:
    """One of ``--tasks``: a named task, a task file, a file of rows, or a folder of them.

    Named tasks have neither a slash nor a dot in their names, so text that has is a path.

    Raises:
        UserError: there is no such file.
    """
    path = Path(text).expanduser()
    changes: dict[str, object] = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
    if is_task_file(text):
        told = load_task_file(path)
        if told.mixture:
            raise UserError(
                f"task {text}: 'mixture' is for training tasks of a study; give the tasks it joins "
                f"to --tasks: {', '.join(told.mixture)}"
            )
        return told.model_copy(update=changes)
    try:
        if not text.startswith("~") and not set(text) & {"/", os.sep, "."}:
            return TaskConfig.model_validate({"name": text, **changes})
        if not path.exists():
            raise UserError(
                f"task {text}: no such file or folder; a data set on the hub is named in a task "
                "file ('hub: owner/name')"
            )
        key = "path" if path.is_dir() else "test"
        name = path.resolve().name if path.is_dir() else path.stem
        return TaskConfig.model_validate({"name": name, key: str(path), **changes})
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        raise UserError(
            f"task {text!r}: {said.get('ctx', {}).get('error', said['msg'])}"
        ) from error


def read_tasks(asked: EvalRequest) -> list[LoadedTask]:
    """Every task but the harness's, read and split.

    Raises:
        UserError: no tasks, one that stands twice, or rows that cannot be used.
    """
    own = [text for text in asked.tasks if not text.startswith(LM_EVAL_PREFIX)]
    configs = [task_config(text, asked.num_fewshot) for text in own]
    names = [config.name for config in configs]
    if not asked.tasks:
        raise UserError("no tasks were given; expected names such as --tasks arc_easy,mmlu")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"task {repeated[0]!r} stands twice in --tasks; give it once")
    lone = [
        config.test is not None and not is_task_file(text)
        for text, config in zip(own, configs, strict=True)
    ]
    if asked.split == "validation" and any(lone):
        raise UserError(
            f"task {own[lone.index(True)]}: a file of rows is scored whole and has no validation "
            "split; leave out --split, or name the rows in a task file ('validation: rows.jsonl')"
        )
    return [
        load_task(
            config,
            asked.data_dir,
            asked.data_seed,
            asked.settings.max_items,
            keep_test_whole=is_lone,
        )
        for config, is_lone in zip(configs, lone, strict=True)
    ]


def read_adapters(asked: EvalRequest, folder: Path, base_sha256: str) -> list[AdapterFolder]:
    """Every adapter, checked against the model before any weights are loaded.

    Raises:
        UserError: missing or damaged; made for other weights; or of other shapes, which no force
            can mend.
    """
    shapes = architecture(read_model_config(folder))
    found: list[AdapterFolder] = []
    for text, label in zip(asked.adapters, labels_of(asked.adapters), strict=True):
        place = Path(text).expanduser()
        if not place.is_dir():
            raise UserError(f"adapter {text}: no such folder; expected a PEFT adapter folder")
        kind = peft_type(place)
        if kind == "LORA":
            read_adapter_config(place)
            try:
                check_adapter_shapes(place, load_adapter(place, label), shapes)
            except IntegrityError as error:
                raise UserError(f"adapter {place}: damaged: {error}") from error
        recorded = recorded_base(place)
        if not asked.force:
            try:
                check_other_base(place, recorded, base_sha256)
            except UserError as error:
                raise UserError(
                    f"{error}; give the model that it was made for, or --force to score it on this "
                    "one, which the result will say"
                ) from error
        is_forced = recorded is not None and recorded != base_sha256
        sha256 = adapter_sha256(place)
        found.append(AdapterFolder(label, place, sha256, kind == "LORA", recorded, is_forced))
    return found


def labels_of(folders: Sequence[str]) -> list[str]:
    """Short names of adapters: the folder's own, with as much before it as tells them apart.

    Raises:
        UserError: a folder that stands twice.
    """
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        again = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"adapter {again}: stands twice; give it once")
    depth = 1
    while True:
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels) and BASE not in labels:
            return labels
        depth += 1


def peft_type(folder: Path) -> str:
    """What kind of adapter a folder holds.

    Raises:
        UserError: no readable configuration or weights there.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        read_adapter_config(folder)  # says what is missing, and what a pickle is
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with_type = settings["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"adapter {folder}: {CONFIG} names no peft_type ({error})") from error
    return str(with_type)
