"""The one way to change YAML: parse it, change its values, and write these over the text.

Entries that stay the same keep every character, and comments stay where they are.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rankscope.config.yaml_lines import Document, compose, dump_text

Edit = tuple[int, int, str]
"""Where replaced text begins and ends, and the new text."""
REST_OF_LINE = re.compile(r"(,?)([ \t]*(?:#[^\r\n]*)?)(?=\r?\n|\Z)")


def read_values(text: str) -> dict[str, Any]:
    """The plain values of a text that is a mapping."""
    root = compose(text, "")
    assert isinstance(root, yaml.MappingNode)
    values: dict[str, Any] = Document(root, Path()).values
    return values


def put(values: Mapping[str, Any], key: str, value: Any, after: str) -> dict[str, Any]:
    """The values with another value of a key, which follows ``after`` unless it has a place."""
    names = list(values)
    if key not in values:
        names.insert(names.index(after) + 1, key)
    return {name: value if name == key else values[name] for name in names}


def with_values(text: str, values: Mapping[str, Any], root: yaml.Node | None = None) -> str:
    """The text with these values: keys that it lacks follow those that are before them.

    ``root``: the text as parsed, if it is parsed in another way than a study file.
    """
    node = root or compose(text, "")
    assert isinstance(node, yaml.MappingNode)
    style = "json" if node.flow_style else "yaml"
    edits = _edits(text, node, 0, Document(node, Path()).values, values, style)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def literal(value: Any, style: str = "yaml") -> str:
    """A value on one line, in the style of ``yaml``, ``json`` or ``python``.

    Numbers have a point before an exponent, without which YAML 1.1 reads text.
    """
    if isinstance(value, bool):
        return str(value) if style == "python" else str(value).lower()
    if isinstance(value, int | float):
        digits, e, exponent = f"{value:.12g}".partition("e")
        return f"{digits}{'.0' * (bool(e) and '.' not in digits)}{e}{exponent}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(literal(entry, style) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {literal(entry)}' for key, entry in value.items())}}}"
    is_plain = style == "yaml" and not set(str(value)) & set("\n,[]{}")
    return dump_text(value) if is_plain else json.dumps(value, ensure_ascii=False)


def addition(text: str, first: int, last: int, entries: list[str], comma: str) -> Edit:
    """Entries behind the one from ``first`` to ``last``, on lines of their own if it has one.

    ``comma`` stands between two entries; it is empty in a block of YAML.
    """
    last = len(text[:last].rstrip())
    margin = _margin(text, first)
    rest = REST_OF_LINE.match(text, last)
    if rest is None or (comma and margin.strip()):
        return last, last, "".join(f", {entry}" for entry in entries)
    newline = "\r\n" if "\r\n" in text else "\n"
    if comma:
        lines = comma.join(f"{newline}{margin}{entry}" for entry in entries)
        return last, rest.end(), f"{comma}{rest[2]}{lines}{rest[1]}"
    end = _end_of_lines(text, first, last)
    lines = "".join(f"{newline}{' ' * len(margin)}{entry}" for entry in entries)
    return end, end, lines


def _end_of_lines(text: str, first: int, last: int) -> int:
    """The end of an entry of a block with the comments behind it: on its last line, and below it
    those that are indented more than the entry."""
    margin = len(_margin(text, first)) + 1
    below = rf"[^\r\n]*(?:\r?\n {{{margin},}}#[^\r\n]*)*"
    found = re.compile(below).match(text, len(text[:last].rstrip()))
    assert found is not None
    return found.end()


def _edits(
    text: str, node: yaml.Node, beside: int, old: Any, new: Any, style: str
) -> Iterator[Edit]:
    """The edits that make the value of a node another: of its entries, or of the whole node.

    ``beside`` is where its key or dash ends.
    """
    if old == new:
        return
    olds, news = _by_key(old), _by_key(new) if isinstance(new, type(old)) else {}
    places = {key: _place(text, node, number) for number, key in enumerate(olds)}
    kept, lost = [key for key in olds if key in news], [key for key in olds if key not in news]
    is_longer = isinstance(new, list) and len(news) > len(olds)
    behind_a_dash = (
        lost and lost[0] == next(iter(olds)) and _margin(text, places[lost[0]][0]).strip()
    )
    if not kept or behind_a_dash or (node.flow_style and (lost or is_longer)):
        start, end = _span(node)
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        space = " " * (is_block or start == end)
        yield beside if is_block else start, end, space + literal(new, style)
        return
    behind, place = dict[Any, list[str]](), kept[-1]
    for key, value in news.items():
        if key in olds:
            _, beside, child = places[key]
            yield from _edits(text, child, beside, olds[key], value, style)
            place = key
        else:
            behind.setdefault(place, []).append(_entry(key, value, style))
    for key, entries in behind.items():
        first, _, child = places[key]
        comma = "," * bool(node.flow_style)
        yield addition(text, first, _span(child)[1], entries, comma)
    for key in lost:
        first, _, child = places[key]
        end = _end_of_lines(text, first, _span(child)[1])
        yield max(0, text.rfind("\n", 0, first)), end, ""


def _margin(text: str, first: int) -> str:
    """What is before an entry on its line."""
    return text[text.rfind("\n", 0, first) + 1 : first]


def _by_key(value: Any) -> dict[Any, Any]:
    """The entries of a mapping, or of a list by position."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {}


def _place(text: str, node: yaml.Node, number: int) -> tuple[int, int, yaml.Node]:
    """Where the key or dash of an entry begins and ends, and the node of its value."""
    entry = node.value[number]
    if isinstance(entry, tuple):
        key, value = entry
        return key.start_mark.index, text.index(":", key.end_mark.index) + 1, value
    first: int = entry.start_mark.index
    if not node.flow_style:
        first = text.rindex("-", 0, first)
    return first, first + 1, entry


def _span(node: yaml.Node) -> tuple[int, int]:
    """Where a value begins and ends, without the comments that follow a block."""
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value
    last = node.value[-1] if is_block else None
    last = last[1] if isinstance(last, tuple) else last
    return node.start_mark.index, _span(last)[1] if last else node.end_mark.index


def _entry(key: str | int, value: Any, style: str) -> str:
    """A new entry; a mapping becomes a section of its own."""
    if style == "json":
        return f"{json.dumps(key)}: {literal(value, style)}"
    if isinstance(key, int):
        return f"- {literal(value)}"
    if isinstance(value, dict):
        return "\n".join((f"\n{key}:", *(f"  {k}: {literal(v)}" for k, v in value.items())))
    return f"{key}: {literal(value)}"
