"""The house's law of imports (CONTRIBUTING.md), read off every source file."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import rankscope

SOURCE = Path(rankscope.__file__).parent

WALK = (
    "config", "data", "models", "evaluate", "train", "advise", "report", "run", "tools", "cli",
)  # fmt: skip
"""The rooms in the order in which data passes through them; each imports those before it."""

GROUND = frozenset(
    {"errors", "formatting", "records", "hashing", "device", "filesystem", "progress", "registry"}
)
"""What every room may import. It imports only itself."""

REGISTRIES: dict[str, frozenset[str]] = {
    "models/methods": frozenset(),
    "models/kernels": frozenset(),
    "train/objectives": frozenset(),
    "analyses": frozenset(),
    "evaluate/engines": frozenset(),
    "sources": frozenset(),
    "run/executors": frozenset({"run/workers/starter.py", "run/workers/attempts.py"}),
    "evaluate/scorers": frozenset(
        {"data/encode.py", "data/items.py", "data/numbers.py", "data/rows.py"}
        | {"evaluate/metrics.py"}
    ),
}
"""Folders of extensions, and what their files may load besides ground and settings. A file that
loads no more is ground, too: study files and records ask it. Any other belongs to its room."""

LAW: dict[str, frozenset[str]] = {
    **{room: GROUND | frozenset(WALK[: i + 1]) | {"store"} for i, room in enumerate(WALK)},
    **dict.fromkeys(GROUND, GROUND),
    # Only the conductor and the rooms after it see the ledger.
    **{room: GROUND | frozenset(WALK[: i + 1]) for i, room in enumerate(WALK[:6])},
    # The decision and the report are functions of typed records and settings.
    "advise": frozenset({"advise", "config", "records", "registry", "errors", "formatting"}),
    "report": frozenset(
        {"report", "config", "records", "registry", "errors", "formatting", "filesystem"}
    ),
    # Records and the ledger carry the typed study file.
    "records": GROUND | {"config"},
    "store": GROUND | {"config", "store"},
    # They name the work of extensions for each room, inside functions.
    **dict.fromkeys(("analyses", "sources"), GROUND | frozenset(WALK)),
    "extensions": frozenset(),
    "__init__": frozenset(WALK),
    "__main__": frozenset({"cli"}),
}


EXTENSION = GROUND | frozenset(WALK) | {"sources", "store"}
"""What an extension may import besides itself."""


def room_of(path: Path) -> str:
    """The room whose rights a source file has: ``data/tasks.py`` -> ``data``."""
    parts = path.relative_to(SOURCE).parts
    is_extension = parts[0] == "extensions" and len(parts) > 2
    return "/".join(parts[:2]) if is_extension else parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import from this package, lazy and type-checking ones included.

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
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "rankscope")


def executed(tree: ast.Module, functions: bool) -> ast.Module:
    """What runs when the module is imported, by other modules than a type checker; or, with
    ``functions``, ever."""

    class Loaded(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
            return node if functions else None

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node

    loaded: ast.Module = Loaded().visit(tree)
    return loaded


def file_of(name: str) -> Path | None:
    """The file of a module, or of the module that a dotted name is defined in."""
    place = SOURCE.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return file_of(name.rpartition(".")[0]) if "." in name else None


def package_of(path: Path) -> tuple[str, ...]:
    return ("rankscope", *path.relative_to(SOURCE).parts[:-1])


@cache
def loads(path: Path, functions: bool = False) -> frozenset[Path]:
    """The files that a file imports when it is imported itself; or, with ``functions``, ever."""
    tree = executed(ast.parse(path.read_text("utf-8")), functions)
    found = {file for _, name in imported(tree, package_of(path)) if (file := file_of(name))}
    # A module's packages are loaded before it.
    around = {p / "__init__.py" for f in found for p in f.parents if p not in path.parents}
    return frozenset((found | {init for init in around if init.is_file()}) - {path})


@cache
def is_ground(path: Path) -> bool:
    """Whether a file of a registry loads nothing but ground and sections of the study file."""
    place, room = path.relative_to(SOURCE).as_posix(), path.relative_to(SOURCE).parts[0]
    registry = next((folder for folder in REGISTRIES if place.startswith(f"{folder}/")), None)
    if registry is None:
        is_empty = path.name == "__init__.py" and not loads(path)
        return is_empty or room.removesuffix(".py") in GROUND | {"config"}
    needed = [file.relative_to(SOURCE).as_posix() for file in loads(path)]
    return all(n in REGISTRIES[registry] or is_ground(SOURCE / n) for n in needed)


def imported_rooms(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for line, name in imported(tree, package):
        path = file_of(name)
        if path is None or path == SOURCE / "__init__.py":
            yield line, name.split(".")[1] if "." in name else "__init__"
        elif path.relative_to(SOURCE).as_posix().startswith(tuple(REGISTRIES)) and is_ground(path):
            yield line, "registry"
        else:
            yield line, room_of(path)


def breaches(path: Path, text: str) -> list[str]:
    """Every import of one file that the law forbids."""
    room = room_of(path)
    law = LAW.get(room, EXTENSION | {room} if room.startswith("extensions/") else frozenset())
    return [
        f"{path.relative_to(SOURCE)}:{line}: {room} imports {other}"
        for line, other in sorted(set(imported_rooms(ast.parse(text), package_of(path))))
        if other not in law
    ]


def test_every_file_keeps_the_law() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10
    found = [breach for path in files for breach in breaches(path, path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_registries_load_only_ground() -> None:
    """Every study file is read with them, so their base and their entries must stay light."""
    for folder in REGISTRIES:
        entry = SOURCE / folder / "__init__.py"
        assert is_ground(entry), [str(p) for p in loads(entry) if not is_ground(p)]


@pytest.mark.parametrize("functions", [False, True])
def test_no_circle_is_imported(functions: bool) -> None:
    """Peel off files whose imports are all peeled off; what is left is in a circle or needs one.

    Imports inside functions count, too, but for those of a registry's entries: they name their work
    for every room.
    """
    left: dict[Path, set[Path]] = {}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE)
        is_entry = place.as_posix().startswith(tuple(REGISTRIES)) and is_ground(path)
        is_entry |= place.match("extensions/*/__init__.py")
        left[path] = set(loads(path, functions and not is_entry))
    while ready := {path for path, needed in left.items() if not needed & left.keys()}:
        for path in ready:
            del left[path]
    assert not left, sorted(str(path) for path in left)


def test_every_room_is_in_the_law() -> None:
    """A new room gets its line above before it gets code."""
    rooms = {room_of(path).partition("/")[0] for path in SOURCE.rglob("*.py")}
    assert rooms - {"extensions"} <= set(LAW), f"not in the law: {sorted(rooms - set(LAW))}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/x.py", "from rankscope.models.load import Base"),
        ("data/x.py", "def f():\n    import rankscope.train.loop"),
        ("config/x.py", "from ..data import tasks"),
        ("report/x.py", "from rankscope.advise.recommend import recommend"),
        ("advise/x.py", "from rankscope.store import Ledger"),
        ("records/x.py", "from rankscope.data.items import Item"),
        ("evaluate/x.py", "from rankscope.run.study import Study"),
        ("plan.py", "from rankscope.run.study import Study"),
        ("evaluate/x.py", "from rankscope.extensions.heads.stage import HeadsStage"),
        ("extensions/x/a.py", "from rankscope.extensions.heads.stage import HeadsStage"),
        ("run/x.py", "from rankscope.extensions.tracking import Tracker"),
    ],
)
def test_breaches_are_found(file: str, text: str) -> None:
    assert len(breaches(SOURCE / file, text)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/x.py", "from rankscope.data.splits import split_rows"),
        ("data/x.py", "from . import sources\nfrom rankscope.errors import UserError"),
        ("report/x.py", "from rankscope.records import StudyRecords\nimport plotly"),
        ("config/x.py", "from rankscope.models.methods import get_method"),
        ("analyses/x/stage.py", "from rankscope.run.stages import Stage"),
    ],
)
def test_what_the_law_allows_is_let_pass(file: str, text: str) -> None:
    assert breaches(SOURCE / file, text) == []


@pytest.mark.parametrize("room", ["advise", "models", "report", "train"])
def test_other_rooms_use_the_modules_that_a_room_offers(room: str) -> None:
    """``__all__`` of a room names them, and names no other."""
    used = set()
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] == room:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                used |= {parts[2]} if parts[:2] == ["rankscope", room] and parts[2:] else set()
    assert used <= set(import_module(f"rankscope.{room}").__all__)
