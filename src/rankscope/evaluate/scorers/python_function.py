"""Generated answers judged by a Python function of the user's own file.

The file is run only if the process was allowed to: a study file may come from somebody else.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.scorers.generation import GenerationScorer, Judgment
from rankscope.hashing import sha256_file

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec

PYTHON_PREFIX = "python:"
ALLOWED = "RANKSCOPE_TRUST_TASK_CODE"
"""Environment variable that allows running code of study files; workers inherit it."""


class PythonScorer(GenerationScorer):
    """The score that ``function(answer, gold, prompt)`` of a file returns, 0 to 1."""

    summary = "greedy generation; `function(answer, gold, prompt)` of your file, see below"
    metrics = {"score": "", "stopped": ""}

    def __init__(self, name: str) -> None:
        self.name = name
        path, _, self.function_name = name.removeprefix(PYTHON_PREFIX).rpartition(":")
        self.path = Path(path)

    def check_task(self, spec: "TaskSpec") -> None:
        super().check_task(spec)
        if os.environ.get(ALLOWED) != "1":
            raise UserError(
                f"task {spec.name!r}",
                f"scorer {self.name!r}, which runs Python code",
                "--trust-task-code with it",
                f"read {self.path} first, then add that option, or {ALLOWED}=1 in the environment",
            )
        # The file may have changed since it was read; its new content gives the task a new hash.
        self.__dict__.pop("function", None)
        _ = self.function

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        """The file's content is part of the task's identity, not its place."""
        place = f"{PYTHON_PREFIX}{self.path.name}:{self.function_name}"
        return {"scorer": place, "source_sha256": sha256_file(self.path)}

    @cached_property
    def function(self) -> Callable[[str, str, str], float]:
        spec = importlib.util.spec_from_file_location(self.path.stem, self.path)
        if spec is None or spec.loader is None or not self.path.is_file():
            raise UserError(f"scorer {self.name!r}: {self.path}", "no such Python file")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            what = f"scorer {self.name!r}: {self.path} fails on import"
            raise UserError(what, f"{type(error).__name__}: {error}") from error
        function = getattr(module, self.function_name, None)
        if not callable(function):
            raise UserError(
                f"scorer {self.name!r}: {self.path}", f"no function {self.function_name!r}"
            )
        return function  # type: ignore[no-any-return]

    def judge_answer(self, item: Item, text: str, pattern: "Pattern[str] | None") -> Judgment:
        gold = item.reference or item.completion
        part = self.part(pattern, text)
        if part is None:
            return 0.0, gold, None
        try:
            score = float(self.function(part, gold, item.prompt))
        except Exception as error:
            raise UserError(
                item.location,
                f"a failure of {self.function_name} of {self.path}: {type(error).__name__}: "
                f"{error}",
            ) from error
        if not 0 <= score <= 1:
            raise UserError(
                item.location,
                f"{score:g}, which {self.function_name} of {self.path} returned",
                "a score from 0 to 1",
                "correct the function",
            )
        return score, gold, part
