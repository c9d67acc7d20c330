"""Files of other trainers as plain values with their places in the text.

A value can be replaced or added, and every other character stays. Python is read by ``ast`` and
never run: a value is a literal, or a name that one literal is assigned to, once and at top level.
Any other expression is ``computed``.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import yaml

from rankscope.config.yaml_changes import Span, Style, spans_of, with_changes
from rankscope.config.yaml_lines import Document, compose
from rankscope.errors import UserError, reading

SUFFIXES = (".yaml", ".yml", ".json", ".py", ".ipynb")
NOT_CODE = ("%%bash", "%%sh", "%%html", "%%writefile", "%%javascript")
"""Beginnings of notebook cells that hold other languages."""


@dataclass
class TrainerDocument:
    """The text of a file, or of each code cell of a notebook, and the values in it."""

    path: Path  # As given; a folder for an adapter
    texts: list[str]
    style: Style
    values: dict[str, Any] = field(default_factory=dict)
    """Values by key; in Python the key is ``Call.argument``."""
    computed: dict[str, str] = field(default_factory=dict)  # Key -> expression
    spans: dict[str, Span] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # Cells that are no Python
    called: set[str] = field(default_factory=set)  # Last names of all calls

    def patched(self, changes: Mapping[str, Any]) -> str:
        """Write the file with other values of some keys.

        Raises UserError: a missing key belongs to a call that the file lacks.
        """
        texts = with_changes(self.texts, self.spans, self.style, changes)
        return self._notebook(texts) if self.path.suffix == ".ipynb" else texts[0]

    def _notebook(self, texts: list[str]) -> str:
        """Write the notebook with the sources of the changed cells, in its own layout."""
        raw, decoder = self.path.read_bytes().decode("utf-8"), json.JSONDecoder()
        plain = raw.isascii()
        decoder.parse_string = _placed  # type: ignore[attr-defined]
        book, _ = py_make_scanner(decoder)(raw, raw.index("{"))
        cells = [cell["source"] for cell in book["cells"] if cell["cell_type"][0] == "code"]
        for source, old, new in reversed([*zip(cells, self.texts, texts, strict=True)]):
            if new != old:
                lines = new.splitlines(keepends=True) if isinstance(source, list) else [new]
                places = source if isinstance(source, list) else [source]
                start, end = places[0][1], places[-1][2]
                known = {line: raw[first:last] for line, first, last in places}
                literals = [known.get(n) or json.dumps(n, ensure_ascii=plain) for n in lines]
                comma = f",{raw[raw.rfind('[', 0, start) + 1 : start]}"
                raw = raw[:start] + comma.join(literals) + raw[end:]
        return raw


def _placed(text: str, start: int, strict: bool) -> tuple[tuple[str, int, int], int]:
    """Scan a text of JSON, and return it with the places of its quotes."""
    value, end = scanstring(text, start, strict)
    return (value, start - 1, end), end


def read_document(path: Path, calls: Mapping[str, Sequence[str]]) -> TrainerDocument:
    """Read the values of a file, or of an adapter's folder.

    ``calls`` are the calls of Python to read, with the names of their positional arguments. Raises
    UserError: no such file, another kind of file, or one that cannot be parsed.
    """
    file = path / "adapter_config.json" if path.is_dir() else path
    if file.suffix not in SUFFIXES or not file.is_file():
        found = "nothing" if not file.exists() else f"the suffix {file.suffix!r}"
        raise UserError(file, found, f"a file of a trainer ({', '.join(SUFFIXES)})", "name one")
    with reading(file, "a file of a trainer that can be parsed", do="correct it"):
        text = file.read_bytes().decode("utf-8")
        if file.suffix == ".py":
            return _read_code(path, [text], calls)
        if file.suffix == ".ipynb":
            code = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            return _read_code(path, ["".join(source) for source in code], calls)
        # YAML takes JSON, except for tabs, which JSON has between values only.
        root = compose(text.replace("\t", " ") if file.suffix == ".json" else text, str(file))
    if not isinstance(root, yaml.MappingNode):
        raise UserError(file, "no keys", "the settings of a training run", "name another file")
    plain = Document(root, file.parent)
    if plain.problems:
        raise UserError(file, "values that cannot be read", faults=[
            f"{mark}: {problem}" for _, mark, problem in plain.problems])  # fmt: skip
    style: Style = "json" if root.flow_style else "yaml"
    return TrainerDocument(path, [text], style, plain.values, spans=spans_of(root))


# --- Python -------------------------------------------------------------------------------------


def _read_code(path: Path, cells: list[str], calls: Mapping[str, Sequence[str]]) -> TrainerDocument:
    document = TrainerDocument(path, cells, "python")
    trees: list[tuple[int, ast.Module]] = []
    for number, source in enumerate(cells):
        if source.startswith(NOT_CODE):
            continue
        try:
            trees.append((number, ast.parse(_without_magics(source))))
        except (SyntaxError, ValueError) as error:
            if path.suffix == ".py":
                raise
            document.unread.append(f"cell of code {number + 1} ({error})")
    constants = _constants([tree for _, tree in trees])
    for number, tree in trees:
        nodes = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        document.called |= {ast.unparse(node).rpartition(".")[2] for node in nodes}
        for call, name, entry in _arguments(tree, calls):
            key, node = f"{call}.{name}", entry.value if isinstance(entry, ast.keyword) else entry
            if key in document.spans or name == "**":
                document.computed[key] = "several calls" if name != "**" else ast.unparse(node)
                continue
            first, last = _code_span(entry, cells[number])
            document.spans[key] = (number, first, *_code_span(node, cells[number]), last)
            value = constants.get(node.id, node) if isinstance(node, ast.Name) else node
            try:
                document.values[key] = ast.literal_eval(value)
            except (ValueError, TypeError):
                document.computed[key] = ast.unparse(node)
    return document


def _without_magics(source: str) -> str:
    """Replace lines of IPython by an expression of the same length, so that places stay."""
    lines, continued = [], False
    for line in source.split("\n"):
        code = line.lstrip()
        if is_magic := code.startswith(("%", "!")):
            line = line[: -len(code)] + "0".ljust(len(code))
        elif continued:
            line = " " * len(line)
        continued = (is_magic or continued) and code.rstrip().endswith("\\")
        lines.append(line)
    return "\n".join(lines)


def _constants(trees: Sequence[ast.Module]) -> dict[str, ast.expr]:
    """Return names that are assigned once, at top level, with their assigned expressions."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    stored = Counter(name.id for name in names if not isinstance(name.ctx, ast.Load))
    stored += Counter(node.arg for node in nodes if isinstance(node, ast.arg))
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.alias)
    stored += Counter(node.name for node in nodes if isinstance(node, defined))
    assigned = [node for tree in trees for node in tree.body if isinstance(node, ast.Assign)]
    pairs = [(a.targets[0], a.value) for a in assigned if len(a.targets) == 1]
    return {n.id: v for n, v in pairs if isinstance(n, ast.Name) and stored[n.id] == 1}


def _arguments(
    node: ast.AST, calls: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, ast.expr | ast.keyword]]:
    """Yield (call, argument, its code) in the order of the code, without code below
    ``if False``."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant) and not node.test.value:
        for other in node.orelse:
            yield from _arguments(other, calls)
        return
    if isinstance(node, ast.Call):
        dotted = "." + ast.unparse(node.func)
        for call in [call for call in calls if dotted.endswith("." + call)]:
            yield from ((call, n, v) for n, v in zip(calls[call], node.args, strict=False))
            yield from ((call, word.arg or "**", word) for word in node.keywords)
    for child in ast.iter_child_nodes(node):
        yield from _arguments(child, calls)


def _code_span(node: ast.expr | ast.keyword, source: str) -> tuple[int, int]:
    """Return the places of an expression in characters; ``ast`` counts bytes of a line."""
    lines = source.split("\n")

    def place(line: int, column: int) -> int:
        before = sum(len(earlier) + 1 for earlier in lines[: line - 1])
        return before + len(lines[line - 1].encode()[:column].decode())

    end = node.end_lineno or 0, node.end_col_offset or 0
    return place(node.lineno, node.col_offset), place(*end)
