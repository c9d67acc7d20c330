"""Rows that neither a file nor a named task holds: one folder for each source.

A task called ``PREFIX:REST`` belongs to the source of that prefix, which a folder's ``__init__.py``
registers, so a folder can be removed. Import this registry freely: it loads neither torch nor
records.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rankscope.config.task import TaskConfig
    from rankscope.data.tasks import LoadedTask
    from rankscope.run.context import RunContext
    from rankscope.run.stages import RowsStage


class Source:
    """One source of rows. Its module is read with every study file, so it must load neither torch
    nor records: its methods import what they need."""

    prefix: ClassVar[str]
    has_tasks: ClassVar[bool] = False
    """Whether a study without arms may name its tasks, and score them."""
    label: ClassVar[str]  # What its tasks are, in messages

    def check_name(self, rest: str) -> None:
        """Raise Unfit if no task is called so."""

    def tasks(self, name: str) -> "list[TaskConfig]":
        """The tasks of one word of ``eval --tasks``."""
        raise NotImplementedError

    def load_task(self, config: "TaskConfig", max_items: int | None) -> "LoadedTask":
        """One task with its items; needs no model."""
        raise NotImplementedError

    def stage(self, context: "RunContext") -> "RowsStage[Any] | None":
        """Makes numbers beside rows that only a run of the base can make."""
        return None


_SOURCES: dict[str, Source] = {}


def register_source(source: Source) -> None:
    """Make a source available under its prefix; replaces one that had it."""
    _SOURCES[source.prefix] = source


def all_sources() -> tuple[Source, ...]:
    return tuple(_SOURCES.values())


def source_of(name: str) -> Source | None:
    """The source of a task called ``PREFIX:REST``; None for any other name."""
    prefix, colon, _ = name.partition(":")
    return _SOURCES.get(prefix) if colon else None


def rows_stages(context: "RunContext") -> "list[RowsStage[Any]]":
    """The stages of all sources that have one."""
    return [stage for source in all_sources() if (stage := source.stage(context)) is not None]


def use_rows(context: "RunContext") -> None:
    """Put into the study all that only a run of the base can make."""
    for stage in rows_stages(context):
        stage.use()


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
