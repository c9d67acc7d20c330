"""YAML as plain values that know their line, and ``--set``, whose values replace them.

Scalars follow YAML 1.2: YAML 1.1 reads ``1e-3`` as text, ``no`` as false and ``010`` as 8.
Numbers that are not finite are text. Tags, anchors and aliases are refused, so that a study file
cannot run code or grow without bound.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rankscope.config.section import ConfigSection, Location, Unfit, dotted, section_at, short_repr
from rankscope.errors import UserError, reason_of

MAX_BRACKETS = 100
MAX_DEPTH = 20  # Parts of the key of an override; study files have five
OVERRIDE = "--set "  # Start of the source of every value that came from an override
TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": r"(?:~|null|Null|NULL|)",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)",
    "int": r"[-+]?[0-9][0-9_]*",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
}
# PyYAML tries the rules under None whatever the first character is.
RESOLVERS = {
    None: [(TAG + name, re.compile(rf"(?:{pattern})\Z")) for name, pattern in SCALARS.items()]
}


class ShallowLoader(yaml.SafeLoader):
    """Refuses deeply nested brackets: PyYAML's time grows with the square of their number."""

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Begin a list or mapping in brackets."""
        if self.flow_level == MAX_BRACKETS:
            message = f"nested too deeply, in more than {MAX_BRACKETS} brackets"
            mark = self.get_mark()
            raise yaml.scanner.ScannerError(None, None, message, mark)
        super().fetch_flow_collection_start(token)


class _StudyLoader(ShallowLoader):
    """Composes nodes and never constructs objects."""

    yaml_implicit_resolvers = RESOLVERS

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node; refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported: write the value out", mark
            )
        return super().compose_node(parent, index)


class _StudyDumper(yaml.SafeDumper):
    """Quotes exactly the texts that ``_StudyLoader`` would not read back as text."""

    yaml_implicit_resolvers = RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Texts that were read know their folder.
_StudyDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)


def compose(text: str, name: str) -> yaml.Node | None:
    """Parse ``text`` into nodes whose marks carry ``name``; None if the text has no value."""
    loader = _StudyLoader(text)
    try:
        loader.name = name
        return loader.get_single_node()
    except yaml.YAMLError:
        raise
    except Exception as error:  # ValueError for some escapes, RecursionError
        raise yaml.YAMLError(reason_of(error)) from error
    finally:
        loader.dispose()


def dump(value: Any, width: int = 100) -> str:
    """YAML text that reads back as ``value``; the order of keys is kept."""
    text: str = yaml.dump(
        value, None, _StudyDumper, sort_keys=False, allow_unicode=True, width=width
    )
    return text


class _Written(str):
    """A text from a file, with the folder that it is relative to if it is a path."""

    folder: Path


def _read_scalar(node: yaml.Node, folder: Path) -> Any:
    text: str = node.value
    match node.tag.removeprefix(TAG):
        case "str":
            text.encode()  # raises ValueError for a lone surrogate, which no tokenizer reads
            written = _Written(text)
            written.folder = folder
            return written
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            number = int(text.replace("_", ""))
            if abs(number) >= 2**63:
                raise Unfit(short_repr(number), "at most 64 bits")
            return number
        case "float":
            value = float(text)
            return value if math.isfinite(value) else text  # no setting can be 1e999
    tag = short_repr(node.tag.replace(TAG, "!!"))
    raise Unfit(f"the tag {tag}", "plain values", "remove the tag")


class Mark(NamedTuple):
    source: str  # Path of the file, or the text of an override
    line: int  # Counted from 0

    @property
    def is_override(self) -> bool:
        return self.source.startswith(OVERRIDE)

    def __str__(self) -> str:
        return self.source if self.is_override else f"{self.source}:{self.line + 1}"


class Document:
    """The plain values of a YAML file, the place of each, and the values that could not be read."""

    def __init__(self, root: yaml.Node, folder: Path) -> None:
        """``folder`` holds the file; relative paths in it start there."""
        self.folder = folder
        self.marks: dict[Location, Mark] = {}
        self.key_marks: dict[Location, Mark] = {}  # Places of values' keys, or of list items
        self.problems: list[tuple[Location, Mark, UserError]] = []
        self.values: Any = self.read(root)

    def read(self, node: yaml.Node, location: Location = ()) -> Any:
        """Return the plain value of ``node``; an unreadable value becomes None and a problem."""
        mark = _mark_of(node)
        self.marks[location] = mark
        self.key_marks.setdefault(location, mark)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self._read_mapping(node, location)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.read(item, (*location, i)) for i, item in enumerate(node.value)]
        try:
            return _read_scalar(node, Path.cwd() if mark.is_override else self.folder)
        except Unfit as error:
            problem: UserError = error
        except ValueError as error:
            problem = UserError(found=reason_of(error), expected="a value")
        self.problems.append((location, mark, problem))
        return None

    def _read_mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        """Return the values of a mapping by key; the first of several equal keys counts."""
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, mark = key_node.value, _mark_of(key_node)
            place = (*location, key) if isinstance(key_node, yaml.ScalarNode) else location
            if place == location:
                problem = UserError(found="a list or a mapping as a key", expected="text")
                self.problems.append((place, mark, problem))
            elif key in values:
                line = self.key_marks[place].line + 1
                found = f"a second value of this key, which line {line} has too"
                problem = UserError(found=found, expected="each key once")
                self.problems.append((place, mark, problem))
            else:
                self.key_marks[place] = mark
                values[key] = self.read(value_node, place)
        return values

    def mark_at(self, location: Location, of_key: bool = False) -> Mark:
        """Return the place of the value (or key) at ``location``, or of the nearest above it."""
        marks = self.key_marks if of_key else self.marks
        return next(
            marks[location[:n]] for n in range(len(location), -1, -1) if location[:n] in marks
        )

    def forget(self, location: Location) -> None:
        """Remove the marks and problems at and below ``location``, whose value is replaced."""
        depth = len(location)
        for marks in (self.marks, self.key_marks):
            for place in [place for place in marks if place[:depth] == location]:
                del marks[place]
        self.problems = [entry for entry in self.problems if entry[0][:depth] != location]


def _mark_of(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.name, node.start_mark.line)


# --- overrides ------------------------------------------------------------------------------------


def apply_override(document: Document, override: str, model: type[ConfigSection]) -> None:
    """Set the value of ``a.b.0=VALUE`` in a document of ``model``; VALUE is read as YAML.

    Creates sections that the file leaves out, and expands a short form (``model: pocket``) if the
    override reaches into it. Does not check keys: the validation of the whole study does, and can
    suggest what was meant.
    """
    source = OVERRIDE + (override if override.isprintable() else short_repr(override))
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        example = "KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]"
        raise UserError(source, expected=example)
    try:
        node = compose(text, source)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        found = f"a value that is not YAML ({problem})"
        raise UserError(source, found, "valid YAML", "correct it") from error
    container: Any = document.values
    location: Location = ()
    for part in parts[:-1]:
        entry = _entry_of(container, part, location, source)
        location = (*location, entry)
        value = container.get(entry) if isinstance(container, dict) else container[entry]
        if not isinstance(value, dict | list):
            section = section_at(location, model)
            long_form = None
            if section is not None and isinstance(value, str):
                long_form = section.from_short_form(value)
            if value is not None and long_form is None:
                found = f"{short_repr(value)}, which has no keys"
                raise UserError(f"{source}: {dotted(location)}", found, "a section or a list")
            container[entry] = value = long_form or {}
            # A short form's values keep the mark, and folder, of the file.
            mark = document.marks[location] if value else Mark(source, 0)
            for place in [(*location, key) for key in value] or [location]:
                document.marks[place] = document.key_marks[place] = mark
        container = value
    entry = _entry_of(container, parts[-1], location, source)
    location = (*location, entry)
    document.forget(location)
    document.marks[location] = document.key_marks[location] = Mark(source, 0)
    container[entry] = None if node is None else document.read(node, location)


def _entry_of(container: Any, part: str, location: Location, source: str) -> str | int:
    """Return the key or position of an entry, which must exist in a list."""
    if isinstance(container, dict):
        return part
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(container):
        place = f"{source}: {dotted(location)}"
        last = len(container) - 1
        raise UserError(place, f"no entry {short_repr(part)}", f"a number from 0 to {last}")
    return int(part)
