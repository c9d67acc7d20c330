"""The context of one run, which every stage works with."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from rankscope.device import release_freed_memory
from rankscope.errors import CONTINUES, Interrupted
from rankscope.models.base import Base
from rankscope.models.svd_cache import SvdCache, svd_cache_folder
from rankscope.progress import ProgressReporter
from rankscope.records import ModelRecord, Record, TrialSpec
from rankscope.run.group_ledger import GroupLedger, resolve_groups
from rankscope.run.groups import Group
from rankscope.run.prepared import PreparedStudy
from rankscope.run.study_clock import StudyClock
from rankscope.run.versions import provenance
from rankscope.store import Ledger


class Round(Record):
    """The groups that run now. A grid runs them to their end; a search may decide first."""

    groups: tuple[Group, ...] = Field((), exclude=True)  # A worker reads its own ledger's
    is_last: bool = True  # Score test items and analyze too
    analyzed: tuple[str, ...] | None = None  # Ids of the trials to analyze; None: all
    label: str = ""


@dataclass(slots=True)
class RunContext:
    """One run of a study."""

    study: PreparedStudy
    ledger: Ledger
    base_record: ModelRecord
    load: Callable[[], Base]
    reporter: ProgressReporter
    should_stop: Callable[[], bool]
    group_ledger: GroupLedger
    round: Round = field(default_factory=Round)
    svd_cache: SvdCache = field(default_factory=lambda: SvdCache(folder=svd_cache_folder()))
    label: str = ""  # Work of the current stages, such as ``group 1/3 gsm8k``
    pieces_done: int = 0
    """Pieces of work done in the current stage; training reports optimizer steps instead."""
    study_clock: StudyClock | None = None
    """Time left of the whole study; only the process that runs all groups knows it."""
    did_work: bool = False  # Whether anything was missing in the ledger
    allow_mixed: bool = False
    """Whether results may be added to those of other versions of libraries or code."""
    versions_checked: bool = False
    memory_before_groups: int = 0  # Bytes that this process held before its first group
    groups_worked_on: int = 0  # Groups that this process has begun to work on
    counted_until: float = field(default_factory=time.monotonic)
    killed_for_memory: bool = False
    """Whether the first work killed earlier processes, so that it must become smaller."""
    _base: Base | None = None

    @property
    def base(self) -> Base:
        """The frozen base, loaded at its first use: a finished study that runs again needs none.

        The adapters of one group at a time are attached to it.
        """
        return self._base or self.load_base()

    def load_base(self) -> Base:
        self._base = self.load()
        release_freed_memory()
        return self._base

    def begin_round(self, trials: Sequence[TrialSpec], this_round: Round) -> None:
        """Work on some trials, in the groups of the study's first run if it formed them."""
        groups = self.study.placed(resolve_groups(self.ledger, self.study, trials))
        self.round = this_round.model_copy(update={"groups": groups})

    def begin_stage(self, name: str, num_steps: int) -> None:
        """Report a stage with work to do; the first stage stores the versions that do it.

        Raises UserError: the stored results are of other versions, and mixing is not allowed.
        """
        if not self.versions_checked:
            self.ledger.add_provenance(provenance(), allow_mixed=self.allow_mixed)
            self.versions_checked = True
        self.did_work = True
        self.pieces_done = 0
        if self.study_clock is not None:
            self.study_clock.begin_stage(name)
        self.reporter.stage(f"{self.label} {name}", num_steps)

    def finish_stage(self) -> None:
        """Report the end of the stage, and the time left of the study."""
        if self.study_clock is not None:
            self.study_clock.begin_stage("")
        self.reporter.finish(self.study_clock.left_text() if self.study_clock else "")

    def count_time(self) -> None:
        """Add the time since the last call to the study's, unless there was no work."""
        now = time.monotonic()
        if self.did_work:
            self.ledger.add_seconds(now - self.counted_until)
            self.counted_until = now

    def begin_piece(self, detail: str) -> None:
        """Report the next piece of the stage.

        Raises Interrupted: the user asked to stop.
        """
        self.check_stop()
        self.reporter.advance(self.pieces_done, detail)

    def check_stop(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self.should_stop():
            do = f"everything finished is stored: {CONTINUES}"
            raise Interrupted("this command", "a request to stop", do=do)
