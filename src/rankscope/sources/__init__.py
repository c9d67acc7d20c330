"""Sources of rows that neither a file nor a named task holds; the registry finds them.

A task called ``PREFIX:REST`` belongs to the source of that prefix. Import this freely: it loads
neither torch nor records.
"""

from functools import cache
from typing import TYPE_CHECKING, ClassVar

from rankscope.registry import parts

if TYPE_CHECKING:
    from rankscope.config.task import TaskConfig
    from rankscope.data.tasks import LoadedTask


class Source:
    """One source of rows.

    Its module is read with every study file, so it must load neither torch nor records: its methods
    import what they need.
    """

    name: ClassVar[str]  # The prefix of its tasks
    has_tasks: ClassVar[bool] = False
    """Whether a study without arms may name its tasks and score them."""
    label: ClassVar[str]  # Name of its tasks in messages

    def check_name(self, rest: str) -> None:
        """Raise Unfit if no task has this name."""

    def tasks(self, name: str) -> "list[TaskConfig]":
        """Return the tasks of one word of ``eval --tasks``."""
        raise NotImplementedError

    def load_task(self, config: "TaskConfig", max_items: int | None) -> "LoadedTask":
        """Load one task with its items; needs no model."""
        raise NotImplementedError


@cache
def sources() -> dict[str, Source]:
    """Return all sources by the prefix of their tasks."""
    return {name: kind() for name, kind in parts(Source).items()}


def source_of(name: str) -> Source | None:
    """Return the source of a task called ``PREFIX:REST``; None for any other name."""
    prefix, colon, _ = name.partition(":")
    return sources().get(prefix) if colon else None
