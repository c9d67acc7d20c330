"""The house's law of imports (docs/architecture.md), read off every source file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankscope

SOURCE = Path(rankscope.__file__).parent

WALK = (
    "config",
    "trials",
    "data",
    "models",
    "train",
    "evaluate",
    "analyze",
    "advise",
    "report",
)
GROUND = frozenset({"errors", "records", "provenance", "runtime", "disk"})
"""What every room may import. It imports only itself."""

CONDUCT = (
    "reading", "inputs", "packing", "plan", "curves", "head_stage", "weights", "trained",
    "milder", "stages",
    "study", "export", "inspection", "head_inspection", "shrinking", "prediction", "scoring",
    "comparing",
    "screens", "cli",
)  # fmt: skip
"""The conductor's parts see every room, and of each other those that stand before them."""

HOUSE = GROUND | frozenset(WALK) | {"ledger", "watch"}

LAW: dict[str, frozenset[str]] = {
    **{room: GROUND | frozenset(WALK[: i + 1]) for i, room in enumerate(WALK)},
    **dict.fromkeys(GROUND, GROUND),
    # The decision and the report are functions of records alone.
    "advise": frozenset({"advise", "records", "errors"}),
    "report": frozenset({"report", "records", "errors", "disk"}),
    "ledger": frozenset({"ledger", "errors", "records", "provenance", "disk"}),
    **{part: HOUSE | frozenset(CONDUCT[: i + 1]) for i, part in enumerate(CONDUCT)},
    # The public names, and ``python -m rankscope``.
    "__init__": HOUSE | frozenset(CONDUCT),
    "__main__": frozenset({"cli"}),
    # How a run tells what it is doing; only the conductors hear it.
    "watch": frozenset({"watch", "errors"}),
}


def room_of(path: Path) -> str:
    """First part of a source file's place: ``data/tasks.py`` -> ``data``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of every import from this package, lazy and type-checking ones included.

    package: names of the packages the file lies in, outermost first, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "rankscope":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def breaches(path: Path, text: str) -> list[str]:
    """Every import of one file that the law forbids."""
    room = room_of(path)
    package = ("rankscope", *path.relative_to(SOURCE).parts[:-1])
    return [
        f"{path.relative_to(SOURCE)}:{line}: {room} imports {other}"
        for line, other in sorted(set(imported_rooms(ast.parse(text), package)))
        if other not in LAW.get(room, frozenset())
    ]


def test_every_file_keeps_the_law() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10
    found = [breach for path in files for breach in breaches(path, path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_every_room_is_in_the_law() -> None:
    """A new room gets its line above before it gets code."""
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms <= set(LAW), f"not in the law: {sorted(rooms - set(LAW))}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/x.py", "from rankscope.models.load import Base"),
        ("data/x.py", "def f():\n    import rankscope.train.loop"),
        ("config/x.py", "from rankscope import trials"),
        ("config/x.py", "from ..trials import make_trials"),
        ("report/x.py", "from rankscope.advise.recommend import recommend"),
        ("advise/x.py", "from rankscope.config.schema import StudyConfig"),
        ("ledger.py", "from rankscope.runtime import choose_device"),
        ("records/x.py", "from rankscope.config.schema import Method"),
        ("evaluate/x.py", "from rankscope.study import Study"),
        ("data/x.py", "import rankscope"),
        ("plan.py", "from rankscope.study import Study"),
        ("watch.py", "from rankscope.ledger import Ledger"),
    ],
)
def test_breaches_are_found(file: str, text: str) -> None:
    assert len(breaches(SOURCE / file, text)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/x.py", "from rankscope.data.pocket_world import World"),
        ("trials.py", "from rankscope.config.schema import StudyConfig"),
        ("data/x.py", "from . import sources\nfrom rankscope.errors import BadInput"),
        ("report/x.py", "from rankscope.records import StudyRecords\nimport plotly"),
        ("study.py", "from rankscope.report.html import write_report"),
    ],
)
def test_what_the_law_allows_is_let_pass(file: str, text: str) -> None:
    assert breaches(SOURCE / file, text) == []
