"""YAML files of typed sections: nodes in, and every fault in words with its line."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rankscope.config.overrides import OVERRIDE
from rankscope.config.places import section_at
from rankscope.config.section import LocalPath, Section, printable, shown
from rankscope.config.yaml_lines import Location, PlainValues, compose, is_list_at, mark_at
from rankscope.errors import UserError

MAX_BYTES = 2**20
MAX_SHOWN = 20
"""Faults listed in one message; the rest are counted."""

AnySection = TypeVar("AnySection", bound=Section)
Fault = tuple[int, int, str]
"""(0 for the file and 1 for ``--set``, line counted from 0, message): faults sort by place."""


@dataclass(frozen=True, slots=True)
class Words:
    """What messages call a kind of file."""

    kind: str
    keys: str
    """Some of its keys."""
    to_do: str
    """Where there is none; ``{path}`` stands for its place."""

    def remedy(self, path: Path) -> str:
        """What to do where there is no such file, or nothing in it."""
        return self.to_do.format(path=path)


def validated(
    root: yaml.Node, values: PlainValues, raw: Any, whole: type[AnySection]
) -> tuple[AnySection | None, list[Fault]]:
    """``raw``, read from ``root``, as a section, or None; and every fault with its place."""
    faults = [fault_at(mark, text) for mark, text in values.problems]
    # A value that could not be read was reported once already, with its line.
    reported = {(mark.name, mark.line) for mark, _ in values.problems}
    try:
        return whole.model_validate(raw), faults
    except ValidationError as error:
        for details in error.errors(include_url=False):
            mark = mark_of(root, details)
            if (mark.name, mark.line) not in reported:
                faults.append(fault_at(mark, described(root, details, whole)))
    return None, faults


def read_nodes(path: Path, words: Words) -> yaml.MappingNode:
    """The node tree of a file. Raises UserError where it is not a YAML mapping in UTF-8."""
    text = read_text(path, words)
    try:
        root = compose(text, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "; indent with spaces, not tabs" if "'\\t'" in said else ""
        raise UserError(f"{path}{line}: not valid YAML: {said}{hint}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        found = chr(error.character)
        raise UserError(
            f"{path}:{line_number}: character {found!r} is not allowed in YAML: remove it"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if root is None:
        raise UserError(f"{path}: is empty; {words.remedy(path)}")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{path}:{root.start_mark.line + 1}: found {kind(root)}, expected a mapping with keys "
            f"such as {words.keys}"
        )
    return root


def read_text(path: Path, words: Words) -> str:
    """The file's text without its byte order mark. Raises UserError where that is not possible."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a {words.kind} (YAML)")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {words.remedy(path)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(str(path))}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES:,} bytes, which no {words.kind} is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8 text; "
            f"save the file as UTF-8"
        ) from error


def fault_at(mark: yaml.Mark, text: str) -> Fault:
    """A fault with its place in front: the file and line, or the override."""
    if mark.name.startswith(OVERRIDE):
        return 1, mark.line, f"{mark.name}: {text}"
    return 0, mark.line, f"{mark.name}:{mark.line + 1}: {text}"


def joined(faults: Iterable[Fault]) -> str:
    """All faults as one message, by place, equal ones once."""
    messages = [text for *_, text in sorted(set(faults))]
    more = len(messages) - MAX_SHOWN
    if more > 0:
        messages = [*messages[:MAX_SHOWN], f"... and {more} more"]
    return "\n".join(messages)


def mark_of(root: yaml.Node, details: ErrorDetails) -> yaml.Mark:
    """Where a fault stands: an unknown key's own line, else the line of the value."""
    return mark_at(root, details["loc"], of_key=details["type"] == "extra_forbidden")


def described(root: yaml.Node, details: ErrorDetails, whole: type[Section]) -> str:
    """One fault of a file of ``whole`` as ``place: what was found; what was expected``."""
    location, kind_of_fault, found = details["loc"], details["type"], details["input"]
    place = as_written_place(root, location)
    if kind_of_fault == "extra_forbidden":
        section = section_at(location[:-1], whole)
        return f"{place}: unknown key; {suggestion(str(location[-1]), section)}"
    if kind_of_fault == "missing":
        section = section_at(location[:-1], whole)
        field = section.model_fields.get(str(location[-1])) if section else None
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"{place}: missing: this key is required{meaning}"
    if kind_of_fault == "value_error":
        return f"{place}: {details['ctx']['error']}"
    expected = details["msg"].removeprefix("Input should be ")
    if kind_of_fault in ("model_type", "model_attributes_type"):
        section = section_at(location, whole)
        keys = ", ".join(section.model_fields) if section else ""
        expected = f"a mapping with keys such as {keys}" if keys else "a mapping"
    if kind_of_fault == "too_short":
        expected = f"a list of at least {details['ctx']['min_length']}"
    if kind_of_fault == "string_type":
        expected += "; put it in quotes"
    return f"{place}: found {as_written(found)}, expected {expected}"


def as_written_place(root: yaml.Node, location: Location) -> str:
    """``arms.0.rank`` for a single value, though it was checked as a list of one."""
    written = location
    if location and isinstance(location[-1], int) and not is_list_at(root, location[:-1]):
        written = location[:-1]
    return ".".join(printable(part) for part in written) or "study"


def suggestion(key: str, section: type[Section] | None) -> str:
    """``did you mean 'rank'?``, or the keys there are."""
    known = list(section.model_fields) if section is not None else []
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.55)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known)}"


def as_written(value: Any) -> str:
    """A value in YAML's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    return shown(value)


def kind(node: yaml.Node) -> str:
    """A node in words."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"the text {shown(node.value)}"


def with_absolute_paths(
    section: AnySection, node: yaml.Node, location: Location, folder: Path
) -> AnySection:
    """The section with every ``LocalPath`` below it made absolute.

    node: the root of the file's tree, which knows whether a value came from the file or ``--set``.
    location: where ``section`` stands. folder: of the study file.
    """
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, place = getattr(section, name), (*location, name)
        if isinstance(value, Section):
            changes[name] = with_absolute_paths(value, node, place, folder)
        elif isinstance(value, list):
            changes[name] = [
                with_absolute_paths(item, node, (*place, index), folder)
                if isinstance(item, Section)
                else item
                for index, item in enumerate(value)
            ]
        elif isinstance(value, str) and any(isinstance(m, LocalPath) for m in field.metadata):
            from_override = mark_at(node, place).name.startswith(OVERRIDE)
            start = Path.cwd() if from_override else folder
            changes[name] = absolute(value, start)
    given = {name: value for name, value in changes.items() if value != getattr(section, name)}
    return section.model_copy(update=given)


def absolute(text: str, start: Path) -> str:
    """``text`` as an absolute path without ``..``; ``~`` is the home directory."""
    # normpath rather than resolve: a linked data folder keeps the name its owner gave it.
    return os.path.normpath(start / Path(text).expanduser())
