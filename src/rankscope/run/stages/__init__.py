"""The stages that a group of trials passes through, all of one form.

A stage reads from the ledger what is missing, computes it piece by piece, and commits each piece
before the next. A run that is killed at any moment repeats at most the piece it was in, and what
``measure_base`` measured, which is not stored. The stages of analyses are in ``analyses/``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from rankscope.models.base import Base
from rankscope.records import TrialSpec
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

    def left_to_measure(self) -> list[TrialSpec]:
        """Of a stage whose work are trials, those of all groups that it will come to: they lack its
        results, or are not trained yet."""
        statuses = self.context.ledger.statuses()
        trials = tuple(trial for group in self.context.study.groups for trial in group)
        missing: set[object] = set(self.missing(trials))
        return [t for t in trials if t in missing or statuses[t.trial_id] == "planned"]

    def missing(self, group: Group) -> Sequence[Work]:
        """The work on ``group`` whose results the ledger lacks; by default trials without a record
        of the stage's name."""
        trials: Sequence[Any] = self.context.ledger.without_record(self.name, group)
        return trials

    @abstractmethod
    def run(self, model: Base, work: Sequence[Work]) -> Iterator[Result]:
        """Compute and yield the results one by one.

        ``model`` is the base with the group's adapters attached, or a trial's own model; for
        training and for scores of the base, the bare base.
        """

    def commit(self, result: Result) -> None:
        """Store one result; by default the record of a trial."""
        record: Any = result
        settings = self.context.study.settings_of(self.name, [record.trial_id])
        self.context.ledger.commit([record], settings=settings)


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
