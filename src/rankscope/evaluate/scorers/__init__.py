"""The registry of scorers: the files of this folder, and those of extensions and other packages.

A scorer needs one file. Study files, tasks, error messages and the documentation ask here. Import
it freely: it loads neither torch nor transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from rankscope.data.items import Item
from rankscope.data.rows import BadRow
from rankscope.errors import UserError
from rankscope.registry import parts

if TYPE_CHECKING:
    from rankscope.data.registry import TaskSpec

PYTHON_PREFIX = "python:"
PYTHON_PATTERN = rf"{PYTHON_PREFIX}[^:]+\.py:[A-Za-z_]\w*"
ALLOWED = "RANKSCOPE_TRUST_TASK_CODE"
"""Environment variable that allows a process to run code of study files; workers inherit it."""
ScoreUnit = Literal["accuracy", "log_probability"]


class ScorerKind:
    """A scorer as tasks know it; ``scorer.py`` adds its work."""

    name: str  # Value of a task's ``scorer``
    summary: str  # The score in words, for the documentation
    metrics: Mapping[str, str]
    """Maps each metric to its meaning ("" if the name says it); the first one is the default
    primary metric."""
    unit: ScoreUnit | None = "accuracy"
    """Unit of the primary metric: a share of 1, or nats per token; None for another unit."""
    version: int = 1
    """Version of user tasks with this scorer; raise it when a change of the code moves scores."""
    generates: bool = False
    """Whether models write answers, so that ``stop``, ``extract`` and ``max_new_tokens`` apply."""
    preset: str = "default"  # ``init`` takes it for rows that it scores
    compares_with_base: bool = False  # Items have ``base_margin``, see ``extensions/preferences``
    needs_choices: bool = False  # Rows must have choices and the index of the right one
    needs_listed_options: bool = False  # The prompt must show the lettered options
    metric_choices: tuple[str, ...] = ()  # Metrics that a task may name as its primary metric
    scores_one_row: bool = False
    """Whether every item is one row with fixed target tokens."""

    @property
    def default_metric(self) -> str:
        return next(iter(self.metrics))

    def primary_metrics(self, spec: "TaskSpec") -> tuple[str, ...]:
        """Return the ``metric_choices`` that are measured for a task."""
        return self.metric_choices

    def check_task(self, spec: "TaskSpec") -> None:
        """Raise UserError for settings of a task that this scorer cannot use."""
        where = f"task {spec.name!r}, scorer {self.name!r}"
        if self.needs_listed_options and not spec.lists_options:
            found = "a prompt without {options}"
            raise UserError(where, found, "it, so that the model sees which letter is which")
        for key, value in (("stop", spec.stop), ("extract", spec.extract)):
            if value and not self.generates:
                do = "remove it, or choose a scorer that generates, such as 'number'"
                raise UserError(where, repr(key), "it for generated answers alone", do)
        known = self.primary_metrics(spec)
        if spec.primary_metric is not None and spec.primary_metric not in known:
            found = f"'primary_metric' {spec.primary_metric!r}, which is not measured"
            raise UserError(where, found, " or ".join(map(repr, known)) or "none")
        if spec.num_fewshot and self.unit == "log_probability":
            raise UserError(
                where, "'num_fewshot'", "it for questions with answers alone", "remove it"
            )

    def adapt_row(self, content: Item) -> Item:
        """Give a row the completion and gold answer that this scorer compares.

        Raises BadRow: the row cannot be scored.
        """
        if self.needs_choices and content.answer is None:
            found = f"a row without choices for scorer {self.name!r}"
            raise BadRow(found, "choices and an answer")
        return replace(content, contexts=())


@cache
def scorers() -> dict[str, ScorerKind]:
    """Return all scorers by name, including the users' functions that were asked for."""
    kinds: dict[str, type[ScorerKind]] = parts(ScorerKind, __name__)
    return {name: kind() for name, kind in kinds.items() if name != PYTHON_PREFIX}


def get_scorer(name: str) -> ScorerKind:
    """Return the scorer of a name; ``python:FILE:FUNCTION`` is a user's own function.

    Raises ValueError: no scorer has this name.
    """
    if name not in scorers() and re.fullmatch(PYTHON_PATTERN, name):
        scorer = scorers()[name] = parts(ScorerKind, __name__)[PYTHON_PREFIX]()
        scorer.name = name
    if name in scorers():
        return scorers()[name]
    raise ValueError(f"scorer {name!r}: expected one of {', '.join(scorers())}")


def scorer_names() -> tuple[str, ...]:
    return tuple(name for name in scorers() if ":" not in name)


def primary_metric_names() -> tuple[str, ...]:
    """List the metrics that tasks may name as their primary metric, whatever their scorer."""
    choices = (scorer.metric_choices for scorer in scorers().values())
    return tuple(dict.fromkeys(name for names in choices for name in names))
