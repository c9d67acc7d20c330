"""Generated answers judged by a Python function of the user's own file.

The file runs only if the environment allows it, because a study file may come from somebody else.
"""

import ast
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING, Any

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError, reading
from rankscope.evaluate.scorers import ALLOWED, PYTHON_PREFIX
from rankscope.evaluate.scorers.generation import GenerationScorer, Judgment
from rankscope.hashing import sha256_file

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec


class PythonScorer(GenerationScorer):
    """Scores by ``function(answer, gold, prompt)`` of a file, which returns 0 to 1."""

    name = PYTHON_PREFIX  # Each has its own, which begins so
    summary = "greedy generation; `function(answer, gold, prompt)` of your file, see below"
    metrics = {"score": "", "stopped": ""}

    @cached_property
    def path(self) -> Path:
        return Path(self.name.removeprefix(PYTHON_PREFIX).rpartition(":")[0])

    @property
    def function_name(self) -> str:
        return self.name.rpartition(":")[2]

    def check_task(self, spec: "TaskSpec") -> None:
        super().check_task(spec)
        if os.environ.get(ALLOWED) != "1":
            found = f"scorer {self.name!r}, which runs Python code"
            do = f"read {self.path} first, then add that option, or {ALLOWED}=1 in the environment"
            raise UserError(f"task {spec.name!r}", found, "--trust-task-code with it", do)
        # The file may have changed since it was read; its new content gives the task a new hash.
        self.__dict__.pop("function", None)
        _ = self.function

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        return self.content()

    def content(self) -> dict[str, Any]:
        """Identify the code by the content of its files, whatever their folder."""
        place = f"{PYTHON_PREFIX}{self.path.name}:{self.function_name}"
        files = _imported_files(self.path)
        modules = {f.relative_to(self.path.parent).as_posix(): sha256_file(f) for f in files}
        found = {"scorer": place, "source_sha256": sha256_file(self.path)}
        return found | ({"modules": modules} if modules else {})

    @cached_property
    def function(self) -> Callable[[str, str, str], float]:
        expected = f"a Python file with a function {self.function_name!r}"
        before = set(sys.modules)
        with reading(f"scorer {self.name!r}", expected):
            function: Callable[[str, str, str], float] = run_path(str(self.path))[
                self.function_name
            ]
        # Another file may import a module of the same name, or this one after an edit.
        own = set(map(os.path.realpath, _imported_files(self.path)))
        for name in sys.modules.keys() - before:
            place = getattr(sys.modules[name], "__dict__", {}).get("__file__")
            if os.path.realpath(place or "") in own:
                del sys.modules[name]
        return function

    def judge_answer(self, item: Item, text: str, pattern: "Pattern[str] | None") -> Judgment:
        gold = item.reference or item.completion
        part = self.part(pattern, text)
        if part is None:
            return 0.0, gold, None
        where = f"{item.location}: {self.function_name} of {self.path}"
        with reading(where, "a score from 0 to 1"):
            score = float(self.function(part, gold, item.prompt))
        if not 0 <= score <= 1:
            raise UserError(where, f"{score:g}", "a score from 0 to 1", "correct the function")
        return score, gold, part


def _imported_files(path: Path) -> list[Path]:
    """List the files that a Python file imports from its own folder or below, and their imports.

    Installed packages are left out. Raises UserError: a file is not Python.
    """
    found, left = list[Path](), [path]
    while left:
        file = left.pop()
        if file in found or path.parent not in file.parents or not file.is_file():
            continue
        found.append(file)
        with reading(file, "Python code"):
            nodes = list(ast.walk(ast.parse(file.read_bytes())))
        for node in nodes:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names, level = [alias.name.split(".") for alias in node.names], 0
            if isinstance(node, ast.ImportFrom):
                module, level = (node.module or "").split("."), node.level
                names = [[*module, *name] for name in names]
            for start in file.parents[level - 1 : level] if level else [path.parent]:
                for name in names:
                    places = [start.joinpath(*name[: n + 1]) for n in range(len(name))]
                    left += [f for p in places for f in (Path(f"{p}.py"), p / "__init__.py")]
    return found[1:]
