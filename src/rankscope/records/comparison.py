"""Studies side by side: what they share, and how the arms they have in common compare."""

from typing import Literal

from rankscope.records.advice import Confidence, Decision
from rankscope.records.estimate import Estimate
from rankscope.records.record import Record


class StudyAnswer(Record):
    task: str
    decision: Decision
    confidence: Confidence
    verdict: str
    chosen_label: str | None  # Label of the recommended arm; None if no arm is recommended


class ComparedStudy(Record):
    label: str  # Its name, or its folder if two studies share a name
    folder: str
    base: str
    trials: int
    done: int
    failed: int
    answers: tuple[StudyAnswer, ...]


class Facet(Record):
    what: str
    same: bool
    text: str  # What it is, or what differs


class ComparedCell(Record):
    """One arm in both studies, or the base of each, scored on the test split of one task."""

    trained_on: str | None  # None: the untuned bases
    arm: str | None  # Label of the arm; None: the untuned bases
    rank: int | None
    full: bool  # Full fine-tuning; False for the bases
    tested_on: str
    score_unit: Literal["accuracy", "log_probability"] | None
    paired: bool  # Same items, prompts and scoring: items are compared one by one
    same_models: bool
    """Whether both studies scored the same trials, or the same base. If paired, they can differ
    only by rounding and the difference has no interval; if unpaired, the items differ and it has
    one."""
    first: Estimate  # Mean score in the first study
    second: Estimate
    difference: Estimate  # Second minus first; unpaired, of two samples without p


class StudyPair(Record):
    first: str  # Label of the first study
    second: str
    facets: tuple[Facet, ...]
    only_first: tuple[str, ...]  # Arms only in the first study, with their training task
    only_second: tuple[str, ...]
    cells: tuple[ComparedCell, ...]
    notes: tuple[str, ...]  # What a reader has to know, one sentence each


class StudyComparison(Record):
    studies: tuple[ComparedStudy, ...]
    pairs: tuple[StudyPair, ...]

    @property
    def training_tasks(self) -> list[str]:
        return list(dict.fromkeys(a.task for study in self.studies for a in study.answers))
