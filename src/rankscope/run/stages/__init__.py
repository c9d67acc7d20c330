"""The stages that a group of trials passes through, all of one form.

A stage reads from the ledger what is missing, computes it piece by piece, and commits each piece
before the next. A run that is killed at any moment repeats at most its current piece, and the
results of ``measure_base``, which are not stored. Extensions have their own stages.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from rankscope.models.base import Base
from rankscope.records import TrialSpec
from rankscope.registry import extension_files
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.store import rows_path

Work = TypeVar("Work")
Result = TypeVar("Result")


class Stage(ABC, Generic[Work, Result]):
    name: str

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def measure_base(self) -> None:
        """Called before the first group, to measure what the groups need of the bare base."""

    def left_to_measure(self) -> list[TrialSpec]:
        """Return the trials of all groups that lack this stage's result, untrained ones included.

        The work of the stage must be trials.
        """
        statuses = self.context.ledger.statuses()
        trials = tuple(trial for group in self.context.round.groups for trial in group)
        missing: set[object] = set(self.missing(trials))
        return [t for t in trials if t in missing or statuses[t.trial_id] == "planned"]

    def missing(self, group: Group) -> Sequence[Work]:
        """Return the work on ``group`` whose results the ledger lacks.

        By default these are trials without a record of the stage's name.
        """
        trials: Sequence[Any] = self.context.ledger.without_record(self.name, group)
        return trials

    @abstractmethod
    def run(self, model: Base, work: Sequence[Work]) -> Iterator[Result]:
        """Compute and yield the results one by one.

        ``model`` is the base with the group's adapters attached, or a trial's own model. For
        training and for scores of the base it is the bare base.
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
    """Run a stage over ``work``, by default on the bare base, and commit each result at once."""
    if not work:
        return
    for result in stage.run(model or context.base, work):
        stage.commit(result)
        context.pieces_done += 1
    context.finish_stage()


class RowsStage(Stage[tuple[str, Work], tuple[str, list[Any]]]):
    """A stage of the bare base, once per study, before any trial trains.

    It makes lists of JSON values. Each is stored by a hash of everything that it depends on besides
    the base. An extension has such a stage in its file ``rows``.
    """

    @abstractmethod
    def wanted(self) -> Mapping[str, Work]:
        """Return the lists to make, by hash."""

    @abstractmethod
    def use(self) -> None:
        """Put all wanted lists into the study, and make those that are not stored.

        Raises IntegrityError: a stored list is altered.
        """

    def missing(self, group: Group = ()) -> list[tuple[str, Work]]:
        """Return the wanted lists that are not stored; they belong to no group."""
        ledger, wanted = self.context.ledger, self.wanted().items()
        return [piece for piece in wanted if not ledger.artifacts(rows_path(piece[0]))]

    def commit(self, result: tuple[str, list[Any]]) -> None:
        (sha256, values), ledger = result, self.context.ledger
        with ledger.stage() as folder:
            file = folder / "rows.jsonl"
            file.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")
            ledger.commit(artifacts=ledger.publish(file, rows_path(sha256)))

    def made(self) -> dict[str, list[Any]]:
        """Return all wanted lists by hash, and make those that are not stored."""
        run_stage(self.context, self, self.missing())
        found = {}
        for sha256 in self.wanted():
            text = self.context.ledger.checked_path(rows_path(sha256)).read_text("utf-8")
            found[sha256] = [json.loads(line) for line in text.splitlines()]
        return found


def rows_stages(context: RunContext) -> list[RowsStage[Any]]:
    """Return the stages of all extensions that make rows."""
    files = {file.__name__ for file in extension_files("rows")}
    return [kind(context) for kind in RowsStage.__subclasses__() if kind.__module__ in files]


def use_rows(context: RunContext) -> None:
    """Put the lists of all row stages into the study, and make those that are not stored."""
    for stage in rows_stages(context):
        stage.use()
