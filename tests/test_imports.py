"""The house's law of imports (docs/architecture.md), read off every source file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankscope

SOURCE = Path(rankscope.__file__).parent

WALK = (
    "config",
    "data",
    "models",
    "train",
    "evaluate",
    "analyze",
    "advise",
    "report",
    "run",
    "predict",
    "tools",
    "cli",
)
"""The rooms in the order in which data passes through them; each imports those before it."""

GROUND = frozenset(
    {"errors", "formatting", "records", "hashing", "device", "filesystem", "progress"}
    | {"methods", "scorers"}
)
"""What every room may import. It imports only itself."""

REGISTRIES = {"rankscope.models.methods": "methods", "rankscope.evaluate.scorers": "scorers"}
"""Registries are ground, too; of their entries, what is heavy is imported inside functions."""

LAW: dict[str, frozenset[str]] = {
    **{room: GROUND | frozenset(WALK[: i + 1]) | {"store"} for i, room in enumerate(WALK)},
    **dict.fromkeys(GROUND, GROUND),
    # Only the conductor and the rooms after it see the ledger.
    **{room: GROUND | frozenset(WALK[: i + 1]) for i, room in enumerate(WALK[:8])},
    # The decision and the report are functions of typed records and settings.
    "advise": frozenset({"advise", "config", "records", "methods", "errors", "formatting"}),
    "report": frozenset(
        {"report", "config", "records", "methods", "errors", "formatting", "filesystem"}
    ),
    # Records and the ledger carry the typed study file.
    "records": GROUND | {"config"},
    "store": GROUND | {"config", "store"},
    "__init__": frozenset(WALK),
    "__main__": frozenset({"cli"}),
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
            registry = next((REGISTRIES[r] for r in REGISTRIES if name.startswith(r)), None)
            if registry is not None:
                yield node.lineno, registry
            elif parts[0] == "rankscope":
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
        ("config/x.py", "from rankscope import data"),
        ("config/x.py", "from ..data import tasks"),
        ("report/x.py", "from rankscope.advise.recommend import recommend"),
        ("advise/x.py", "from rankscope.store import Ledger"),
        ("ledger.py", "from rankscope.device import choose_device"),
        ("records/x.py", "from rankscope.data.items import Item"),
        ("evaluate/x.py", "from rankscope.run.study import Study"),
        ("data/x.py", "import rankscope"),
        ("plan.py", "from rankscope.run.study import Study"),
        ("watch.py", "from rankscope.store import Ledger"),
    ],
)
def test_breaches_are_found(file: str, text: str) -> None:
    assert len(breaches(SOURCE / file, text)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/x.py", "from rankscope.data.pocket_world import World"),
        ("run/trials.py", "from rankscope.config.study import StudyConfig"),
        ("data/x.py", "from . import sources\nfrom rankscope.errors import UserError"),
        ("report/x.py", "from rankscope.records import StudyRecords\nimport plotly"),
        ("run/study.py", "from rankscope.report.study_page import render_study"),
    ],
)
def test_what_the_law_allows_is_let_pass(file: str, text: str) -> None:
    assert breaches(SOURCE / file, text) == []
