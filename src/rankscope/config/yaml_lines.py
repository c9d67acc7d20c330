"""YAML as a tree of nodes that know their line, and its plain values.

Scalars follow YAML 1.2: YAML 1.1 reads ``1e-3`` as text, ``no`` as false and ``010`` as 8.
Tags, anchors and aliases are refused, so that a study file cannot run code or grow without bound.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from rankscope.config.section import Location, short_repr

TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": r"(?:~|null|Null|NULL|)",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)",
    "int": r"[-+]?[0-9][0-9_]*",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
# PyYAML tries the rules under None whatever the first character is.
RESOLVERS = {
    None: [(TAG + name, re.compile(rf"(?:{pattern})\Z")) for name, pattern in SCALARS.items()]
}


class StudyLoader(yaml.SafeLoader):
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


class StudyDumper(yaml.SafeDumper):
    """Quotes exactly the texts that ``StudyLoader`` would not read back as text."""

    yaml_implicit_resolvers = RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out."""
        return True


def compose(text: str, name: str) -> yaml.Node | None:
    """Parse ``text`` into nodes whose marks carry ``name``; None if the text has no value.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    loader = StudyLoader(text)
    try:
        loader.name = name
        node: yaml.Node | None = loader.get_single_node()
        return node
    except RecursionError as error:
        raise yaml.YAMLError("values are nested too deeply") from error
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """YAML text that reads back as ``value``; the order of keys is kept."""
    text: str = yaml.dump(value, Dumper=StudyDumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def dump_text(value: str) -> str:
    """A text as a YAML scalar on one line, quoted if necessary."""
    text: str = yaml.dump(value, Dumper=StudyDumper, width=2**30)
    return text.removesuffix("...\n").rstrip("\n")


def read_scalar(node: yaml.ScalarNode) -> Any:
    """The plain value of a scalar.

    Raises:
        ValueError: the scalar has a tag other than those of plain values.
    """
    text: str = node.value
    match node.tag.removeprefix(TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text.replace("_", ""))
        case "float":
            lowered = text.lower()
            return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(tag_problem(node))


def tag_problem(node: yaml.Node) -> str:
    tag = short_repr(node.tag.replace(TAG, "!!"))
    return f"tag {tag} is refused: a study file contains plain values only, remove the tag"


@dataclass
class PlainValues:
    """Converts nodes to dicts, lists and scalars, and collects the problems."""

    problems: list[tuple[yaml.Mark, str]] = field(default_factory=list)

    def read(self, node: yaml.Node) -> Any:
        """The plain value of ``node``; an unreadable value becomes None and a problem."""
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.read_mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.read(item) for item in node.value]
        if isinstance(node, yaml.ScalarNode):
            try:
                return read_scalar(node)
            except ValueError as error:
                self.problems.append((node.start_mark, str(error)))
                return None
        self.problems.append((node.start_mark, tag_problem(node)))
        return None

    def read_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """The values of a mapping by key; the first of several equal keys counts."""
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((mark, "a key must be text: found a list or a mapping"))
                continue
            key = key_node.value
            if key in values:
                line = first_lines[key] + 1
                problem = f"key {short_repr(key)} is repeated, first on line {line}"
                self.problems.append((mark, problem))
                continue
            first_lines[key] = mark.line
            values[key] = self.read(value_node)
        return values


def child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """(key or item node, value node) of one entry; None if there is no such entry."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and str(part).isdecimal():
        index = int(part)
        if index < len(node.value):
            return node.value[index], node.value[index]
    return None


def find_mark(root: yaml.Node, location: Location, of_key: bool = False) -> yaml.Mark:
    """The mark of the value (or key) at ``location``, or of the nearest node above it."""
    node, mark = root, root.start_mark
    for part in location:
        entry = child(node, part)
        if entry is None:
            return mark
        key, node = entry
        mark = key.start_mark if of_key else node.start_mark
    return mark


def is_list_at(root: yaml.Node, location: Location) -> bool:
    node = root
    for part in location:
        entry = child(node, part)
        if entry is None:
            return False
        node = entry[1]
    return isinstance(node, yaml.SequenceNode)
