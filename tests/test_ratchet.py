"""The ratchet: no count of the house rises. A commit that removes something lowers ``LIMITS``."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LIMITS = {
    "code lines of the core": 26_410,
    "code lines of extensions": 8_058,  # a cap: 7,000 and objectives, kernels, vLLM, shards
    "lines of tests": 28_780,
    "lines of tests of extensions": 9_473,
    "words of docs and README": 27_032,
    "words of README": 866,
    "sentences over 40 words": 2,
    "data types": 146,
    "public definitions": 905,
    "functions over 60 lines": 3,
    "headless docstrings": 1,
    "modules with one importer": 27,
    "modules in the largest circle": 10,  # imports inside functions count
    "modules that prepare.py imports": 10,  # run/prepare.py itself, not what those import
    "keys of the study file": 141,  # 32 of them in sections that a mere name can stand for
}
SCHEMA = "docs/study.schema.json"
DATA_BASES = set("NamedTuple Record ConfigSection BaseModel TypedDict Enum StrEnum".split())


def code_lines(text: str, nodes: Sequence[ast.AST]) -> int:
    """Lines that are neither blank, nor a comment, nor part of a string that stands alone."""
    alone = [node for node in nodes if isinstance(node, ast.Expr)]
    strings = [node for node in alone if isinstance(getattr(node.value, "value", None), str)]
    prose = {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}
    rows = enumerate(map(str.strip, text.split("\n")), 1)
    return sum(i not in prose and row != "" and row[0] != "#" for i, row in rows)


def is_data_type(node: ast.AST) -> bool:
    bases = {getattr(base, "id", getattr(base, "attr", "")) for base in getattr(node, "bases", ())}
    marks = [getattr(mark, "func", mark) for mark in getattr(node, "decorator_list", ())]
    return bool(bases & DATA_BASES) or any(getattr(m, "id", "") == "dataclass" for m in marks)


def imported(nodes: Sequence[ast.AST], package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that a file of ``package`` imports, inside functions and for types, too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (start, *(f"{start}.{alias.name}" for alias in node.names))


def largest_circle(imports: dict[str, set[str]]) -> int:
    """Size of the largest set of modules that all reach each other by imports."""
    reached = {}
    for module in imports:
        left, seen = [module], set[str]()
        while left:
            new = imports[left.pop()] - seen
            seen |= new
            left += new
        reached[module] = seen
    return max(sum(m in reached[other] for other in reached[m]) for m in reached)


def keys(schema: object) -> int:
    """Keys of every section once, those of sections that a name can stand for included."""
    if isinstance(schema, dict):
        return len(schema.get("properties", ())) + keys(list(schema.values()))
    return sum(map(keys, schema)) if isinstance(schema, list) else 0


def sentences(page: str) -> Iterator[str]:
    prose = re.sub(r"```.*?```", " ", page, flags=re.DOTALL)
    for block in prose.split("\n\n"):
        if not block.lstrip().startswith(("|", "#", "!")):
            yield from re.split(r"(?<=[.!?:])\s", block)


def count(root: Path) -> Counter[str]:
    """Every count of ``LIMITS`` in a checkout."""
    found, imports, source = Counter[str](), dict[str, set[str]](), root / "src"
    for path in source.rglob("*.py"):
        parts, text = path.relative_to(source).with_suffix("").parts, path.read_text("utf-8")
        nodes = list(ast.walk(ast.parse(text)))  # the module itself first
        if parts[1] == "extensions":
            found["code lines of extensions"] += code_lines(text, nodes)
            continue
        found["code lines of the core"] += code_lines(text, nodes)
        found["headless docstrings"] += len(re.findall(r'"""(?:Of|What|That|The same|By) ', text))
        found["public definitions"] += sum(getattr(n, "name", "_")[0] != "_" for n in nodes[0].body)
        found["data types"] += sum(map(is_data_type, nodes))
        functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        found["functions over 60 lines"] += sum(n.end_lineno - n.lineno >= 60 for n in functions)
        imports[".".join(parts).removesuffix(".__init__")] = set(imported(nodes, parts[:-1]))
    imports = {module: names & imports.keys() for module, names in imports.items()}
    importers = Counter(name for names in imports.values() for name in names)
    found["modules with one importer"] = sum(n == 1 for n in importers.values())
    found["modules in the largest circle"] = largest_circle(imports)
    found["modules that prepare.py imports"] = len(imports["rankscope.run.prepare"])
    found["keys of the study file"] = keys(json.loads((root / SCHEMA).read_text("utf-8")))
    pages = [p.read_text("utf-8") for p in (root / "README.md", *root.glob("docs/**/*.md"))]
    for path in root.glob("tests/**/*.py"):
        of = " of extensions" if path.is_relative_to(root / "tests/extensions") else ""
        found[f"lines of tests{of}"] += 1 + path.read_bytes().count(10)
    found["words of README"] = len(pages[0].split())
    found["words of docs and README"] = sum(len(page.split()) for page in pages)
    found["sentences over 40 words"] = sum(len(s.split()) > 40 for p in pages for s in sentences(p))
    return found


def rises(found: Mapping[str, int], limits: Mapping[str, int]) -> list[str]:
    return [
        f"{name}: the limit is {limits[name]:,}, found {found[name]:,}; delete as much as you add"
        for name in limits
        if found[name] > limits[name]
    ]


def test_nothing_rises() -> None:
    found = rises(count(Path(__file__).parents[1]), LIMITS)
    assert not found, "\n".join(found)


SIXTY = "def _f():\n" + "    pass\n" * 59
HOUSE = {
    "src/rankscope/a.py": f'"""A file."""\n# A comment.\n\n{SIXTY}import rankscope.b\n',
    "src/rankscope/b.py": "def f(): ...\nclass A(Record): ...\n",
    "src/rankscope/extensions/x.py": "import rankscope.run\n",
    "src/rankscope/run/__init__.py": "from .prepare import f\n",
    "src/rankscope/run/prepare.py": "from rankscope import b\n",
    "tests/test_a.py": "",
    "tests/extensions/x/test_x.py": "",
    "README.md": "A house.",
    "docs/a.md": "# Title\n\n" + "word " * 40 + "end. A\n",
    SCHEMA: '{"properties": {"a": 0}, "$defs": [{"anyOf": [{"properties": {"b": {}}}]}]}',
}
PLANTED = {
    "code lines of the core": (65, "src/rankscope/a.py", "x = 1\n"),
    "code lines of extensions": (1, "src/rankscope/extensions/x.py", "x = 1\n"),
    "lines of tests": (1, "tests/test_a.py", "\n"),
    "lines of tests of extensions": (1, "tests/extensions/x/test_x.py", "\n"),
    "words of docs and README": (46, "docs/a.md", "word "),
    "words of README": (2, "README.md", "word "),
    "sentences over 40 words": (1, "README.md", "word " * 41 + "end. "),
    "data types": (1, "src/rankscope/a.py", "class _T(NamedTuple): ...\n"),
    "public definitions": (2, "src/rankscope/a.py", "def g(): ...\n"),
    "functions over 60 lines": (0, "src/rankscope/a.py", SIXTY + "    pass\n"),
    "headless docstrings": (0, "src/rankscope/a.py", '"""Of a kind."""\n'),
    "modules with one importer": (1, "src/rankscope/b.py", "from rankscope import a\n"),
    "modules in the largest circle": (0, "src/rankscope/b.py", "def _g():\n import rankscope.a\n"),
    "modules that prepare.py imports": (1, "src/rankscope/run/prepare.py", "import rankscope.a\n"),
    "keys of the study file": (2, SCHEMA, '[{"properties": {"c": {}}}, '),
}
"""By name: its count in ``HOUSE``, and what before the text of a file makes it one more."""


def test_a_rise_is_found(tmp_path: Path) -> None:
    """Each count by hand; one more of each is reported, with limit and number."""

    def counted(house: Mapping[str, str]) -> Counter[str]:
        for name, text in house.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        return count(tmp_path)

    before = counted(HOUSE)
    assert {name: before[name] for name in LIMITS} == {name: p[0] for name, p in PLANTED.items()}
    for name, (number, file, text) in PLANTED.items():
        end = "]" if file == SCHEMA else ""
        found = rises(counted(HOUSE | {file: text + HOUSE[file] + end}), before)
        assert any(line.startswith(f"{name}: the limit is {number}, found") for line in found)
