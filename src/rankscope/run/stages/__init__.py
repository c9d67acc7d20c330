"""The stages that a group of trials passes through, all of one form.

A stage reads from the ledger what is missing, computes it piece by piece, and commits each piece
before the next. A run that is killed at any moment repeats at most the piece it was in, and what
``measure_base`` measured, which is not stored. The stages of analyses are in ``analyses/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from rankscope.models.base import Base
from rankscope.run.context import RunContext
from rankscope.run.groups import Group

Work = TypeVar("Work")
Result = TypeVar("Result")


class Stage(ABC, Generic[Work, Result]):
    name: str

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def measure_base(self) -> None:
        """Measure what the groups need of the bare base, before the first of them."""

    @abstractmethod
    def missing(self, group: Group) -> Sequence[Work]:
        """The work on ``group`` whose results the ledger lacks."""

    @abstractmethod
    def run(self, model: Base, work: Sequence[Work]) -> Iterator[Result]:
        """Compute and yield the results one by one.

        ``model`` is the base with the group's adapters attached, or a trial's own model; for
        training and for scores of the base, the bare base.
        """

    @abstractmethod
    def commit(self, result: Result) -> None:
        """Store one result."""


def run_stage(
    context: RunContext,
    stage: Stage[Work, Result],
    work: Sequence[Work],
    model: Base | None = None,
) -> None:
    """Run a stage over ``work``, by default on the bare base, and commit each result as soon as it
    is there."""
    if not work:
        return
    for result in stage.run(model or context.base, work):
        stage.commit(result)
        context.pieces_done += 1
    context.finish_stage()
