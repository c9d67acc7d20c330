"""``--set arms.0.rank=[2,8]``: values from the command line replace those of the study file."""

import yaml

from rankscope.config.section import Location, dotted, section_at, short_repr
from rankscope.config.study import StudyConfig
from rankscope.config.yaml_lines import TAG, child, compose, dump, read_scalar
from rankscope.errors import UserError

OVERRIDE = "--set "
"""Start of the mark of every node that came from an override."""


def apply_override(root: yaml.MappingNode, override: str) -> None:
    """Put the value of ``a.b.0=VALUE`` into the tree; VALUE is read as YAML.

    Creates sections that the file leaves out, and expands a short form (``model: pocket``) if the
    override reaches into it. Does not check keys: the validation of the whole study does, and can
    suggest what was meant.

    Raises:
        UserError: no ``=``, a value that is not YAML, or a place that the file does not have.
    """
    name = OVERRIDE + (override if override.isprintable() else short_repr(override))
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise UserError(f"{name}: expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]")
    try:
        value = compose(text, name) or scalar("", "null", name)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{name}: the value is not valid YAML: {problem}") from error
    node: yaml.Node = root
    for depth in range(1, len(parts)):
        node = enter(node, parts[:depth], name)
    set_entry(node, parts, value, name)


def enter(node: yaml.Node, place: tuple[str, ...], name: str) -> yaml.Node:
    """The container at ``place``, an entry of ``node``; created or expanded if necessary."""
    entry = child(node, place[-1])
    inner = entry[1] if entry is not None else empty_mapping(name)
    if isinstance(inner, yaml.ScalarNode):
        inner = expand_scalar(inner, place, name)
    if entry is None or inner is not entry[1]:
        set_entry(node, place, inner, name)
    return inner


def expand_scalar(node: yaml.ScalarNode, place: tuple[str, ...], name: str) -> yaml.Node:
    """A short form as its long form, an empty value as an empty mapping."""
    if node.tag == TAG + "null":
        return empty_mapping(name)
    location: Location = tuple(int(part) if part.isdecimal() else part for part in place)
    section = section_at(location, StudyConfig)
    value = read_scalar(node)
    long_form = section.from_short_form(value) if section and isinstance(value, str) else None
    if long_form is None:
        raise UserError(f"{name}: {dotted(place)} is {short_repr(value)}, which has no keys")
    expanded = compose(dump(long_form), name)
    assert isinstance(expanded, yaml.MappingNode)
    # The values keep the mark of the file, so that a relative path still starts at its folder.
    for key, value_node in expanded.value:
        key.start_mark = value_node.start_mark = node.start_mark
    return expanded


def set_entry(node: yaml.Node, place: tuple[str, ...], value: yaml.Node, name: str) -> None:
    """Set the entry ``place[-1]`` of ``node``, a mapping or list, to ``value``."""
    last = place[-1]
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        position = keys.index(last) if last in keys else len(keys)
        others = [entry for entry in node.value if entry[0].value != last]
        node.value[:] = [*others[:position], (scalar(last, "str", name), value), *others[position:]]
        return
    parent = dotted(place[:-1])
    if not isinstance(node, yaml.SequenceNode):
        raise UserError(f"{name}: {parent} is {short_repr(node.value)}, which has no entries")
    if child(node, last) is None:
        raise UserError(
            f"{name}: {parent} has no entry {short_repr(last)}: expected a number from 0 to "
            f"{len(node.value) - 1}"
        )
    node.value[int(last)] = value


def empty_mapping(name: str) -> yaml.MappingNode:
    mark = mark_of_override(name)
    return yaml.MappingNode(TAG + "map", [], mark, mark)


def scalar(text: str, kind: str, name: str) -> yaml.ScalarNode:
    mark = mark_of_override(name)
    return yaml.ScalarNode(TAG + kind, text, mark, mark)


def mark_of_override(name: str) -> yaml.Mark:
    return yaml.Mark(name, 0, 0, 0, None, 0)
