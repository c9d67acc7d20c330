"""Reading a YAML file into a section, with every fault described by its place."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rankscope.config.overrides import OVERRIDE
from rankscope.config.section import (
    ConfigSection,
    LocalPath,
    Location,
    dotted,
    section_at,
    short_repr,
)
from rankscope.config.yaml_lines import Document, Mark, compose
from rankscope.errors import UserError, did_you_mean

MAX_BYTES = 2**19
MAX_FAULTS_SHOWN = 20
MAX_KEYS_SHOWN = 8

AnySection = TypeVar("AnySection", bound=ConfigSection)


class Fault(NamedTuple):
    """One fault; faults sort by place, those of the file before those of ``--set``."""

    from_override: bool
    line: int  # Counted from 0
    message: str


@dataclass(frozen=True, slots=True)
class FileKind:
    """What error messages call a kind of file."""

    name: str
    example_keys: str
    how_to_write_one: str  # ``{path}`` is replaced by the path of the missing file


def read_yaml(path: Path, kind: FileKind) -> Document:
    text = read_text(path, kind)
    try:
        root = compose(text, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise UserError(f"{path}{line}: not valid YAML: {problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        character = chr(error.character)
        raise UserError(
            f"{path}:{line_number}: character {character!r} is not allowed in YAML: remove it"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if root is None:
        raise UserError(f"{path}: the file is empty; {kind.how_to_write_one.format(path=path)}")
    if not isinstance(root, yaml.MappingNode):
        is_list = isinstance(root, yaml.SequenceNode)
        found = "a list" if is_list else f"the text {short_repr(root.value)}"
        raise UserError(
            f"{path}:{root.start_mark.line + 1}: found {found}, expected a mapping with keys such "
            f"as {kind.example_keys}"
        )
    document = Document()
    document.values = document.read(root)
    return document


def read_text(path: Path, kind: FileKind) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path}: found a folder, expected a {kind.name} (YAML)")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        remedy = kind.how_to_write_one.format(path=path)
        raise UserError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{short_repr(str(path))}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes, too large for a {kind.name}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text; save the file as "
            "UTF-8"
        ) from error


def validate(document: Document, model: type[AnySection]) -> tuple[AnySection | None, list[Fault]]:
    """The document as a section (None if it is invalid), and every fault."""
    faults = [fault_at(mark, problem) for _, mark, problem in document.problems]
    # A value that could not be read was reported once already, with its line.
    reported = {mark for _, mark, _ in document.problems}
    try:
        return model.model_validate(document.values), faults
    except ValidationError as error:
        for details in error.errors(include_url=False):
            is_unknown_key = details["type"] == "extra_forbidden"
            mark = document.mark_at(details["loc"], of_key=is_unknown_key)
            if mark not in reported:
                faults.append(fault_at(mark, _describe_error(document, details, model)))
    return None, faults


def fault_at(mark: Mark, problem: str) -> Fault:
    """A fault of a value, which is to be corrected if its problem does not say what to do."""
    if "expected" in problem and "; " not in problem:
        problem += "; correct it"
    if mark.source.startswith(OVERRIDE):
        return Fault(True, mark.line, f"{mark.source}: {problem}")
    return Fault(False, mark.line, f"{mark.source}:{mark.line + 1}: {problem}")


def join_faults(faults: Iterable[Fault]) -> str:
    """All faults as one message in the order of the file, without duplicates."""
    messages = [fault.message for fault in sorted(set(faults))]
    more = len(messages) - MAX_FAULTS_SHOWN
    if more > 0:
        messages = [*messages[:MAX_FAULTS_SHOWN], f"... and {more} more"]
    return "\n".join(messages)


def _describe_error(document: Document, details: ErrorDetails, model: type[ConfigSection]) -> str:
    """One error of Pydantic as ``place: what was found; what was expected``."""
    location, error_type = details["loc"], details["type"]
    place = _written_place(document, location) or model.__name__.removesuffix("Config").lower()
    if error_type == "extra_forbidden":
        return f"{place}: found an unknown key, expected {_suggest_key(location, model)}"
    if error_type == "missing":
        section = section_at(location[:-1], model)
        field = section.model_fields.get(str(location[-1])) if section else None
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"{place}: found nothing, expected a value{meaning}; add this key"
    if error_type == "value_error":
        return f"{place}: {details['ctx']['error']}"
    expected = details["msg"].removeprefix("Input should be ")
    if error_type in ("model_type", "model_attributes_type"):
        section = section_at(location, model)
        keys = ", ".join(section.model_fields) if section else ""
        expected = f"a mapping with keys such as {keys}" if keys else "a mapping"
    if error_type == "too_short":
        expected = f"a list of at least {details['ctx']['min_length']}"
    if error_type == "list_type":
        value = details["input"]
        is_single = isinstance(value, str | int | float)
        expected = f"a list such as [{_in_yaml_words(value)}]" if is_single else "a list"
    if error_type == "string_type":
        expected += "; put it in quotes"
    return f"{place}: found {_in_yaml_words(details['input'])}, expected {expected}"


def _written_place(document: Document, location: Location) -> str:
    """``arms.0.rank`` for a single value, although it is validated as a list of one."""
    if location and isinstance(location[-1], int) and location not in document.marks:
        location = location[:-1]
    return dotted(location)


def _suggest_key(location: Location, model: type[ConfigSection]) -> str:
    """``a known one; did you mean 'arms.0.rank'?``, or the first keys of the section."""
    section = section_at(location[:-1], model)
    known = list(section.model_fields) if section is not None else []
    elsewhere = next(_places_of(str(location[-1]), model), "")
    hint = did_you_mean(location[-1], known)
    if elsewhere and str(location[-1]) not in hint:
        hint = f"; did you mean {elsewhere!r}?"
    more = f", ... ({len(known)} in all)" if len(known) > MAX_KEYS_SHOWN else ""
    return f"a known one{hint}" if hint else f"one of {', '.join(known[:MAX_KEYS_SHOWN])}{more}"


def _places_of(key: str, model: type[ConfigSection], above: Location = ()) -> Iterator[str]:
    """Where sections have a key, such as ``arms.0.rank``."""
    section = section_at(above, model)
    for name in section.model_fields if section else ():
        for place in ((*above, name), (*above, name, 0)):
            if below := section_at(place, model):
                if key in below.model_fields:
                    yield dotted((*place, key))
                yield from _places_of(key, model, place)


def _in_yaml_words(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "a mapping" if isinstance(value, dict) else short_repr(value)


# --- paths --------------------------------------------------------------------------------------


def with_absolute_paths(
    section: AnySection, document: Document, location: Location, folder: Path
) -> AnySection:
    """Make every ``LocalPath`` of the section absolute.

    The marks of ``document`` tell values of the file, which is in ``folder``, from those of
    ``--set``; ``location`` is the place of ``section`` in it.
    """

    def absolute(value: Any, place: Location, path: LocalPath | None) -> Any:
        if isinstance(value, ConfigSection):
            return with_absolute_paths(value, document, place, folder)
        if isinstance(value, list):
            return [absolute(item, (*place, i), None) for i, item in enumerate(value)]
        if path is not None and isinstance(value, str) and value.startswith(path.prefix):
            from_override = document.mark_at(place).source.startswith(OVERRIDE)
            text = value.removeprefix(path.prefix)
            whole = absolute_path(text, Path.cwd() if from_override else folder)
            if not whole.isprintable():  # the study is stored with it, and read again
                problem = (
                    f"{dotted(place)}: found {short_repr(whole)}, with characters that cannot be "
                    "printed, expected a folder without them; rename it"
                )
                raise UserError(fault_at(document.mark_at(place), problem).message)
            return path.prefix + whole
        return value

    changes = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = next((mark for mark in field.metadata if isinstance(mark, LocalPath)), None)
        changed = absolute(value, (*location, name), path)
        if changed != value:
            changes[name] = changed
    return section.model_copy(update=changes)


def absolute_path(text: str, start: Path) -> str:
    """``text`` as an absolute path without ``..``; ``~`` is the home directory."""
    # normpath rather than resolve: a linked data folder keeps the name that its owner chose.
    return os.path.normpath(start / Path(text).expanduser())
