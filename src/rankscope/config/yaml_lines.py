"""YAML as nodes that know their line, and plain values out of them.

Scalars follow YAML 1.2, since YAML 1.1 reads ``1e-3`` as text, ``no`` as false and ``010`` as 8.
Tags, anchors and aliases are refused: a study file holds plain values, so nothing in it can run
code, grow without bound or stand in two places at once.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from rankscope.config.section import shown

TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": r"(?:~|null|Null|NULL|)",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)",
    "int": r"[-+]?[0-9][0-9_]*",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
# Under None stand the rules that PyYAML tries whatever the first character is.
RESOLVERS = {
    None: [(TAG + name, re.compile(rf"(?:{pattern})\Z")) for name, pattern in SCALARS.items()]
}

Location = tuple[str | int, ...]


class StudyLoader(yaml.SafeLoader):
    """Composes nodes; never constructs objects."""

    yaml_implicit_resolvers = RESOLVERS

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node; aliases are refused."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not supported: write the value out", mark
            )
        return super().compose_node(parent, index)


class StudyDumper(yaml.SafeDumper):
    """Quotes exactly what ``StudyLoader`` would otherwise not read as text."""

    yaml_implicit_resolvers = RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out."""
        return True


def compose(text: str, name: str) -> yaml.Node | None:
    """Parse ``text`` to its node tree; ``name`` stands in every node's mark.

    Returns None for text without a value. Raises yaml.YAMLError.
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
    """YAML text that ``compose`` and ``PlainValues`` read back to ``value``; key order is kept."""
    text: str = yaml.dump(value, Dumper=StudyDumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def dump_text(value: str) -> str:
    """One text as a YAML scalar on one line, quoted where it must be."""
    text: str = yaml.dump(value, Dumper=StudyDumper, width=2**30)
    return text.removesuffix("...\n").rstrip("\n")


def read_scalar(node: yaml.ScalarNode) -> Any:
    """The plain value of a scalar. Raises ValueError for a tag that is not a plain type."""
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
    raise ValueError(refusal(node))


def refusal(node: yaml.Node) -> str:
    """What to say of a node with a tag."""
    tag = shown(node.tag.replace(TAG, "!!"))
    return f"tag {tag} is refused: a study file holds plain values, remove the tag"


@dataclass
class PlainValues:
    """Reads nodes to dicts, lists and scalars, and collects what is wrong on the way."""

    problems: list[tuple[yaml.Mark, str]] = field(default_factory=list)

    def read(self, node: yaml.Node) -> Any:
        """The plain value of ``node``; what cannot be read becomes None, with a problem."""
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
        self.problems.append((node.start_mark, refusal(node)))
        return None

    def read_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """A mapping's values by key; the first of several equal keys counts."""
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
                self.problems.append((mark, f"key {shown(key)} stands twice, first on line {line}"))
                continue
            first_lines[key] = mark.line
            values[key] = self.read(value_node)
        return values


def child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """(key or item node, value node) of one step down; None where there is no such entry."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key, value
    if isinstance(node, yaml.SequenceNode) and str(part).isdecimal():
        index = int(part)
        if index < len(node.value):
            return node.value[index], node.value[index]
    return None


def mark_at(root: yaml.Node, location: Location, of_key: bool = False) -> yaml.Mark:
    """Where the value at ``location`` stands, or the nearest thing above it that does."""
    node, mark = root, root.start_mark
    for part in location:
        step = child(node, part)
        if step is None:
            return mark
        key, node = step
        mark = key.start_mark if of_key else node.start_mark
    return mark


def is_list_at(root: yaml.Node, location: Location) -> bool:
    """Whether a list stands exactly at ``location``."""
    node = root
    for part in location:
        step = child(node, part)
        if step is None:
            return False
        node = step[1]
    return isinstance(node, yaml.SequenceNode)
