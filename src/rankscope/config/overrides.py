"""``--set arms.0.rank=[2,8]``: values from the command line in place of the study file's."""

import yaml

from rankscope.config.places import section_at
from rankscope.config.section import printable, shown
from rankscope.config.study import StudyConfig
from rankscope.config.yaml_lines import TAG, Location, child, compose, dump, read_scalar
from rankscope.errors import UserError

OVERRIDE = "--set "
"""Marks of nodes that came from an override start with it."""


def apply_override(root: yaml.MappingNode, override: str) -> None:
    """Put the value of ``a.b.0=VALUE`` into the tree; VALUE is read as YAML.

    Sections that the file leaves out are made on the way, and a short form (``model: pocket``) is
    written out where the override reaches into it. Unknown keys are left to the check of the whole
    study, which knows what was meant. Raises UserError for text without ``=``, a value that is not
    YAML, and a place that is not in the file.
    """
    name = OVERRIDE + (override if override.isprintable() else shown(override))
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{name}: expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]")
    try:
        value = compose(text, name)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{name}: the value is not valid YAML: {problem}") from error
    if value is None:
        value = scalar("", "null", name)
    node: yaml.Node = root
    for depth, part in enumerate(parts[:-1]):
        node = step_into(node, part, tuple(parts[: depth + 1]), name)
    put(node, parts, value, name)


def step_into(node: yaml.Node, part: str, place: tuple[str, ...], name: str) -> yaml.Node:
    """The container at ``place``, made or written out where need be."""
    step = child(node, part)
    if step is None:
        made = mapping(name)
        put(node, list(place), made, name)
        return made
    below = step[1]
    if isinstance(below, yaml.ScalarNode):
        below = written_out(below, place, name)
        put(node, list(place), below, name)
    return below


def written_out(node: yaml.ScalarNode, place: tuple[str, ...], name: str) -> yaml.Node:
    """A short form as its mapping, an empty value as an empty one.

    Values keep the mark of the scalar: they are still the file's own words.
    """
    if node.tag == TAG + "null":
        return mapping(name)
    section = section_at(typed(place), StudyConfig)
    text = read_scalar(node)
    long_form = section.from_short_form(text) if section and isinstance(text, str) else None
    if long_form is None:
        raise UserError(f"{name}: {dotted(place)} is {shown(text)}, which holds no keys")
    made = compose(dump(long_form), name)
    assert isinstance(made, yaml.MappingNode)
    for key, value in made.value:
        key.start_mark = value.start_mark = node.start_mark
    return made


def put(node: yaml.Node, parts: list[str], value: yaml.Node, name: str) -> None:
    """Set the entry ``parts[-1]`` of ``node``, a mapping or list, to ``value``."""
    last = parts[-1]
    if isinstance(node, yaml.MappingNode):
        key = scalar(last, "str", name)
        kept = [(k, v) for k, v in node.value if k.value != last]
        position = next((i for i, (k, _) in enumerate(node.value) if k.value == last), len(kept))
        node.value[:] = [*kept[:position], (key, value), *kept[position:]]
        return
    place = dotted(tuple(parts[:-1]))
    if not isinstance(node, yaml.SequenceNode):
        raise UserError(f"{name}: {place} is {shown(node.value)}, which holds no entries")
    if child(node, last) is None:
        count = len(node.value)
        raise UserError(
            f"{name}: {place} has no entry {shown(last)}: expected a number from 0 to {count - 1}"
        )
    node.value[int(last)] = value


def typed(place: tuple[str, ...]) -> Location:
    """The place with list positions as numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in place)


def dotted(place: tuple[str, ...]) -> str:
    """The place as written on the command line."""
    return ".".join(printable(part) for part in place)


def mapping(name: str) -> yaml.MappingNode:
    """An empty mapping that came from the override ``name``."""
    mark = mark_for(name)
    return yaml.MappingNode(TAG + "map", [], mark, mark)


def scalar(text: str, kind: str, name: str) -> yaml.ScalarNode:
    """A scalar that came from the override ``name``."""
    mark = mark_for(name)
    return yaml.ScalarNode(TAG + kind, text, mark, mark)


def mark_for(name: str) -> yaml.Mark:
    """The mark of a node without a line."""
    return yaml.Mark(name, 0, 0, 0, None, 0)
