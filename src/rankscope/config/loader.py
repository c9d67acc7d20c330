"""Reading and writing of study files and task files.

A file becomes a checked section, or one error that lists every fault with its line.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rankscope.config.arm import adapter_fields
from rankscope.config.section import (
    ConfigSection,
    LocalPath,
    Location,
    dotted,
    key_paths,
    section_at,
    short_repr,
)
from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig, is_task_file
from rankscope.config.yaml_lines import OVERRIDE, Document, Mark, apply_override, compose, dump
from rankscope.errors import UserError, did_you_mean, reading

MAX_BYTES = 2**19
MAX_FAULTS_SHOWN = 20
_MAX_KEYS_SHOWN = 8
_MAX_PLACES_SHOWN = 2
_KEYS_OF_OTHERS = {
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
    **dict.fromkeys(("target_modules", "lora_target_modules", "lora_target_linear"), "targets"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size"), "batch_size"),
    **dict.fromkeys(("max_seq_length", "sequence_len", "cutoff_len"), "max_length"),
    **dict.fromkeys(("base_model", "model_name_or_path", "model_name"), "model"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "schedule"),
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "learning_rate": "lr",
    "gradient_accumulation_steps": "gradient_accumulation",
    "datasets": "tasks",
    "seed": "seeds",
}
"""Keys of PEFT, TRL, axolotl and LLaMA-Factory, with the key that means the same here."""
STUDY_KEYS = "'model:', 'tasks:' and 'arms:'"

AnySection = TypeVar("AnySection", bound=ConfigSection)
Faults = list[tuple[Mark, UserError]]


def load_study_file(
    path: Path, overrides: Sequence[str] = (), text: str | None = None
) -> StudyConfig:
    """Read a study file and apply ``--set`` overrides such as ``train.epochs=1``, in order.

    Relative paths in the file start at its folder, those in overrides at the working directory. The
    result has absolute paths, and the content of task files in place of their paths.

    Args:
        text: content to read in place of the file's, for a file that is not written yet.

    Raises UserError: every fault of the file and the overrides, one per line, such as
    ``study.yaml:12: arms.0.rank.0: found 0, expected greater than or equal to 1; correct it``.
    """
    document = _read_yaml(path, STUDY_KEYS, f"create it with: rankscope init {path}", text)
    faults: Faults = []
    for override in overrides:
        try:
            apply_override(document, override, StudyConfig)
        except UserError as error:
            faults.append((Mark(OVERRIDE + override, 0), error))
    faults += _insert_task_files(document)
    return _validated(path, document, StudyConfig, faults)


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the study keys that ``--set`` overrides set, without reading a file."""
    document = _read_yaml(Path("options"), STUDY_KEYS, "", "{}")
    for override in overrides:
        apply_override(document, override, StudyConfig)
    if document.problems:
        place, mark, error = document.problems[0]
        raise fault_at(error, mark, dotted(place))
    values: dict[str, Any] = document.values
    return values


def load_task_file(path: Path) -> TaskConfig:
    """Read a task file; relative paths in it start at its folder."""
    do = "write one with 'name:' and 'test: rows.jsonl' (docs/your-model-and-data.md)"
    document = _read_yaml(path, "'name:', 'test:' and 'scorer:'", do)
    config = _validated(path, document, TaskConfig, [])
    if is_task_file(config.path):
        place = f"{document.mark_at(('path',))}: path"
        raise UserError(place, "another task file", "the rows' folder", "write the task out here")
    return config


def _insert_task_files(document: Document) -> Faults:
    """Replace each task file that a study names by its content.

    Keys beside ``path`` in the study override those of the task file.
    """
    faults: Faults = []
    for tasks, location in _task_lists(document.values):
        for index, task in enumerate(tasks):
            path = task.get("path") if isinstance(task, dict) else task
            if not isinstance(path, str) or not is_task_file(path):
                continue
            mark = document.mark_at((*location, index))
            try:
                loaded = load_task_file(Path(LocalPath().absolute(path)))
            except UserError as error:
                faults += [(mark, e) for e in error.faults or [error] if isinstance(e, UserError)]
                continue
            given = {k: v for k, v in task.items() if k != "path"} if task != path else {}
            tasks[index] = {**loaded.model_dump(exclude_unset=True), **given}
    return faults


def _task_lists(raw: Any) -> Iterator[tuple[list[Any], Location]]:
    """Yield each list of tasks in a study's plain values, with its location."""
    for location in (("tasks",), ("evaluate", "cross_domain"), ("evaluate", "retention")):
        value = raw
        for key in location:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, list):
            yield value, location


# --- faults -------------------------------------------------------------------------------------


def _read_yaml(path: Path, keys: str, remedy: str, text: str | None = None) -> Document:
    """Read a YAML file whose top level is a mapping.

    Args:
        keys: examples of the keys that the file should have, for the error message.
        remedy: advice for the error message if the file is missing or empty.
        text: content to read in place of the file's.
    """
    text = _read_text(path, remedy) if text is None else text
    try:
        root = compose(text, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = str(path) if mark is None else f"{path}:{mark.line + 1}"
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        do = "indent with spaces, not tabs" if "'\\t'" in problem else "correct it"
        raise UserError(place, f"text that is not YAML ({problem})", "valid YAML", do) from error
    except yaml.reader.ReaderError as error:
        place = f"{path}:{text.count(chr(10), 0, error.position) + 1}"
        found = f"the character {chr(error.character)!r}"
        raise UserError(place, found, "one that YAML allows", "remove it") from error
    except yaml.YAMLError as error:
        found = f"text that is not YAML ({error})"
        raise UserError(path, found, "valid YAML", "correct it") from error
    if root is None:
        raise UserError(path, "an empty file", f"keys such as {keys}", remedy)
    if not isinstance(root, yaml.MappingNode):
        is_list = isinstance(root, yaml.SequenceNode)
        found = "a list" if is_list else f"the text {short_repr(root.value)}"
        place = f"{path}:{root.start_mark.line + 1}"
        raise UserError(place, found, f"a mapping with keys such as {keys}", "correct it")
    return Document(root, path.absolute().parent)


def _read_text(path: Path, remedy: str) -> str:
    place = path if str(path).isprintable() else short_repr(str(path))
    if path is place and not path.exists():
        told = f"{{where}} does not exist. {remedy[0].upper()}{remedy[1:]}"
        raise UserError(place, "no file", "a YAML file", remedy, (), told)
    do = "give a readable file"
    with reading(place, "a YAML file", do=do), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(path, "a larger file", f"at most {MAX_BYTES:,} bytes", "shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{path}:{content.count(bytes([10]), 0, error.start) + 1}"
        found = f"byte 0x{content[error.start]:02x}, which is not UTF-8"
        raise UserError(place, found, "UTF-8 text", "save the file as UTF-8") from error


def _validated(
    path: Path, document: Document, model: type[AnySection], faults: Faults
) -> AnySection:
    """Validate a document as a section.

    Raises UserError: the document's faults and ``faults``, in the order of the file, then those of
    ``--set``.
    """
    config = None
    faults += [(m, fault_at(e, m, dotted(place))) for place, m, e in document.problems]
    reported = {mark for mark, _ in faults}  # a value that could not be read is no second fault
    try:
        config = model.model_validate(document.values)
    except ValidationError as errors:
        for details in errors.errors(include_url=False):
            is_unknown_key = details["type"] == "extra_forbidden"
            mark = document.mark_at(details["loc"], of_key=is_unknown_key)
            if mark not in reported:
                place = details["loc"]
                if place and isinstance(place[-1], int) and place not in document.marks:
                    place = place[:-1]  # a single value, although it is validated as a list of one
                name = dotted(place) or model.__name__.removesuffix("Config").lower()
                faults.append((mark, fault_at(described(details, model), mark, name)))
    if config is not None and not faults:
        return config
    faults.sort(key=lambda fault: (fault[0].is_override, fault[0].line, str(fault[1])))
    distinct = list({str(fault): fault for _, fault in faults}.values())
    if len(distinct) == 1:
        raise distinct[0]
    shown: list[UserError | str] = [*distinct[:MAX_FAULTS_SHOWN]]
    if len(distinct) > len(shown):
        shown.append(f"... and {len(distinct) - len(shown)} more")
    raise UserError(path, f"{len(distinct)} faults", do="correct them", faults=shown)


def fault_at(error: UserError, *places: object) -> UserError:
    """Prefix an error with its place; "correct it" is the advice if the error has none."""
    where = ": ".join(filter(None, map(str, places)))
    do = error.do or "correct it"
    return UserError(where, error.found, error.expected, do, (), error.sentence)


def described(details: ErrorDetails, model: type[ConfigSection]) -> UserError:
    """Turn one Pydantic error into what was found and what was expected."""
    location, error_type = details["loc"], details["type"]
    if error_type == "extra_forbidden":
        return _unknown_key(location, model)
    if error_type == "missing":
        section = section_at(location[:-1], model)
        field = section.model_fields.get(str(location[-1])) if section else None
        meaning = f": {field.description}" if field is not None and field.description else "."
        expected, told = f"a value{meaning}", f"{{where}} is missing. Add this key{meaning}"
        return UserError("", "nothing", expected, "add this key", (), told)
    if error_type == "value_error":
        error: ValueError = details["ctx"]["error"]
        return error if isinstance(error, UserError) else UserError(found=str(error))
    expected = details["msg"].removeprefix("Input should be ").removeprefix("String should have ")
    if error_type in ("model_type", "model_attributes_type"):
        section = section_at(location, model)
        keys = ", ".join(section.model_fields) if section else ""
        expected = f"a mapping with keys such as {keys}" if keys else "a mapping"
    if error_type == "byte_size":
        expected = "bytes, or a text such as '12GiB'"
    if error_type == "too_short":
        expected = f"a list of at least {details['ctx']['min_length']}"
    if error_type == "list_type":
        value = details["input"]
        is_single = isinstance(value, str | int | float)
        expected = f"a list such as [{_in_yaml_words(value)}]" if is_single else "a list"
    do = "put it in quotes" if error_type == "string_type" else ""
    found = _in_yaml_words(details["input"])
    told = f"{{where}} is {found}, but must be {expected}." + " Put it in quotes." * bool(do)
    return UserError("", found, expected, do, (), told)


def _unknown_key(location: Location, model: type[ConfigSection]) -> UserError:
    """Report an unknown key, with the likely one here or elsewhere, or the section's first keys.

    Keys of PEFT, TRL and axolotl lead to those of Rankscope.
    """
    section = section_at(location[:-1], model)
    known = list(section.model_fields) if section is not None else []
    elsewhere = [repr(path) for path in places_of_key(str(location[-1]), model, known)]
    hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    hint = hint or did_you_mean(location[-1], known)
    more = f", ... ({len(known)} in all)" if len(known) > _MAX_KEYS_SHOWN else ""
    named = ", ".join(known[:_MAX_KEYS_SHOWN]) + more
    others = f"Known here: {named}." if named else "No key is known here."
    told = f"{{where}} is not a key. {hint[:1].upper()}{hint[1:] or others}"
    expected = "a known one" if hint else f"one of {named}" if named else "none here"
    return UserError("", "an unknown key", expected, hint, (), told)


def places_of_key(
    key: str, model: type[ConfigSection] = StudyConfig, here: Sequence[str] = ()
) -> list[str]:
    """Return where a key belongs, also one of another trainer; its name alone if it is ``here``."""
    name = _KEYS_OF_OTHERS.get(key, key)
    return [name] if name in here else [*key_paths(name, model)][:_MAX_PLACES_SHOWN]


def _in_yaml_words(value: Any) -> str:
    """Write a value as YAML does, for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "a mapping" if isinstance(value, dict) else short_repr(value)


# --- writing ------------------------------------------------------------------------------------


def dump_study(config: StudyConfig) -> str:
    """Write a study as canonical YAML with every default; it loads back as ``config``."""
    return dump(study_values(config))


def study_values(config: StudyConfig) -> dict[str, Any]:
    """Return a study as JSON-compatible values, which validate to an equal ``StudyConfig``."""
    values = config.model_dump(mode="json", exclude_none=True)
    for arm, written in zip(config.arms, values["arms"], strict=True):
        for key in adapter_fields() - arm.own_fields():
            written.pop(key, None)
        if arm.init_from is not None:  # keys that the arm leaves out are the adapter's, no defaults
            for key in {"method", "rank", "alpha", "targets"} - arm.model_fields_set:
                del written[key]
    return values


def study_json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of the study file, short forms included."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **StudyConfig.model_json_schema(),
        "title": "Rankscope study file",
    }


def published_schema() -> str:
    return json.dumps(study_json_schema(), indent=2, ensure_ascii=False) + "\n"
