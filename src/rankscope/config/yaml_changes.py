"""Changes to a file of settings: parse it, change values, write those over the text.

Everything else keeps every character, comments included. Keys of nested entries are joined with
dots. No other code changes such a file.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from rankscope.config.yaml_lines import Document, compose, dump
from rankscope.errors import UserError

Style = Literal["yaml", "json", "python"]
Span = tuple[int, int, int, int, int]
"""Place of an entry: the index of its text; where the entry begins; where its value begins and
ends; and where the whole entry ends."""
Replacement = tuple[int, int, int, str]
"""The index of a text, the begin and end of the part to replace, and the new part."""
ENTRIES = {"yaml": "{}: {}", "json": '"{}": {}', "python": "{}={}"}
REST_OF_LINE = re.compile(r"(,?)([ \t]*(?:#[^\r\n]*)?)(?=\r?\n|\Z)")
AFTER = dict.fromkeys(("data_dir", "dtype", "quantize"), "model")
AFTER |= {"strategy": "seeds", "budget": "strategy"}
"""Key of a study file -> the key that it follows if it is added."""


def read_values(text: str) -> dict[str, Any]:
    """Read the values of a study file."""
    root = compose(text, "")
    assert root is not None
    return dict(Document(root, Path()).values)


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Change values of a study file; new sections may be added, and none are removed."""
    changes = dict(_changes("", read_values(text), values))
    return with_changes([text], spans_of(compose(text, "")), "yaml", changes)[0]


def _changes(place: str, old: Any, new: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries that differ, with their new values.

    A list of another length, or a mapping that lacks keys, is one changed entry.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict) and set() < old.keys() <= new.keys():
        for key, value in new.items():
            name = f"{place}.{key}" if place else key
            yield from _changes(name, old[key], value) if key in old else [(name, value)]
    elif old != new:
        yield place, new


def spans_of(node: yaml.Node | None, place: str = "") -> dict[str, Span]:
    """Find the spans of all entries below a node; a block ends before the comments after it."""
    spans = dict[str, Span]()
    for number, pair in enumerate(node.value if isinstance(node, yaml.CollectionNode) else ()):
        key, value = pair if isinstance(pair, tuple) else (pair, pair)
        name = place + (str(number) if key is value else key.value)
        below = spans_of(value, name + ".")
        is_block = below and not value.flow_style
        end = max(span[3] for span in below.values()) if is_block else value.end_mark.index
        spans |= {name: (0, key.start_mark.index, value.start_mark.index, end, end), **below}
    return spans


def with_changes(
    texts: Sequence[str], spans: Mapping[str, Span], style: Style, changes: Mapping[str, Any]
) -> list[str]:
    """Change the values of some keys in the texts of a file.

    Raises UserError: a missing key belongs to a call that the file lacks.
    """
    changed, added = list(texts), dict[str, list[str]]()
    for key in [key for key in changes if key not in spans]:
        name, value = key.rpartition(".")[2], changes[key]
        entry = ENTRIES[style].format(name, literal(value, style))
        if key == name and isinstance(value, dict):
            entry = "\n  ".join((f"\n{name}:", *_lines(value)))
        added.setdefault(_neighbor(key, spans), []).append(entry)
    # Where a section and its last entry end together, what follows the section is written first.
    edits = [_addition(texts, spans[key], added[key], style) for key in sorted(added)]
    edits += [_edit(texts, spans[key], changes[key], style) for key in changes if key in spans]
    for part, start, end, new in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        changed[part] = changed[part][:start] + new + changed[part][end:]
    return changed


def _neighbor(key: str, spans: Mapping[str, Span]) -> str:
    """Find the key after which a missing key is added.

    It is the last key of the same mapping or call with the same beginning, such as ``lora_``;
    without one, the last key.
    """
    if key in AFTER:
        return AFTER[key] if AFTER[key] in spans else _neighbor(AFTER[key], spans)
    inside = [other for other in spans if other.rpartition(".")[0] == key.rpartition(".")[0]]
    if not inside:
        raise UserError(found=f"no call that takes {key}", expected="one", do="add it to the file")
    alike = [other for other in inside if other.startswith(key.partition("_")[0] + "_")]
    return max(alike or inside, key=spans.__getitem__)


def _addition(texts: Sequence[str], span: Span, entries: list[str], style: Style) -> Replacement:
    """Write entries behind another one, on lines of their own if it has its own line."""
    part, first, _, _, last = span
    text, comma = texts[part], "," * (style != "yaml")
    last = len(text[:last].rstrip())
    margin = text[text.rfind("\n", 0, first) + 1 : first]
    rest = REST_OF_LINE.match(text, last)
    if margin.strip() or rest is None:
        return part, last, last, "".join(f", {entry}" for entry in entries)
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = comma.join(f"{newline}{margin}{entry}" for entry in entries)
    return part, last, rest.end(), f"{comma}{rest[2]}{lines}{rest[1]}"


def _edit(texts: Sequence[str], span: Span, value: Any, style: Style) -> Replacement:
    """Write another value in place of an entry's; a block of YAML stays a block."""
    part, first, start, end, _ = span
    text = texts[part]
    end = start + len(text[start:end].rstrip())  # A block of text ends on the next line
    if style == "yaml" and ("\n" in text[first:start] or text[start - 2 : start] == "- "):
        if value and isinstance(value, list if text[start : start + 1] == "-" else dict):
            margin = " " * (start - text.rfind("\n", 0, start) - 1)
            return part, start, end, f"\n{margin}".join(_lines(value))
        start = text.index(":", first) + 1 if first < start else start
    space = " " * (start == end or (style == "yaml" and text[start - 1] == ":"))
    return part, start, end, space + literal(value, style)


def _lines(value: Any) -> list[str]:
    """Write a block: one line for each entry, and for each entry of a mapping in a list."""
    if isinstance(value, dict):
        return [f"{key}: {literal(entry)}" for key, entry in value.items()]
    entries = [_lines(entry) if isinstance(entry, dict) else [literal(entry)] for entry in value]
    return [f"{' ' if place else '-'} {line}" for e in entries for place, line in enumerate(e)]


def literal(value: Any, style: Style = "yaml") -> str:
    """Write a value on one line.

    Numbers have a point before an exponent, because YAML 1.1 reads ``1e5`` as text.
    """
    if value is None or isinstance(value, int):
        return str(value) if style == "python" else json.dumps(value)
    if isinstance(value, float):
        digits, e, exponent = f"{value:.12g}".replace("e-0", "e-").partition("e")
        return f"{digits}{'.0' * (bool(e) and '.' not in digits)}{e}{exponent}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(literal(entry, style) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(_lines(value))}}}"
    if style != "yaml" or set(str(value)) & set("\n,[]{}"):
        return json.dumps(value, ensure_ascii=False)
    return dump(value, width=2**30).removesuffix("...\n").rstrip("\n")
