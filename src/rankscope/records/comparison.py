"""Two or more studies side by side: what they share, and how the arms that both have compare."""

from typing import Literal

from rankscope.records.advice import Decision, Estimate
from rankscope.records.record import Record


class StudyAnswer(Record):
    """What one study answered for one training task."""

    task: str
    decision: Decision
    confidence: Literal["firm", "tentative", "none"]
    headline: str
    chosen_label: str | None
    """Of the recommended arm; None where none is."""


class ComparedStudy(Record):
    """One of the studies that are compared."""

    label: str
    """Its name; its folder where two of the studies share a name."""
    folder: str
    base: str
    trials: int
    done: int
    failed: int
    answers: tuple[StudyAnswer, ...]


class Facet(Record):
    """One thing that two studies were made of, and whether it is the same in both."""

    what: str
    same: bool
    text: str
    """In words: what it is, or what differs."""


class ComparedCell(Record):
    """One arm that both studies have, or the base of each, scored on one task: test split."""

    trained_on: str | None
    """None: the untuned bases."""
    arm: str | None
    """Label of the arm; None: the untuned bases."""
    rank: int | None
    full: bool
    """Full fine-tuning; False for the bases."""
    tested_on: str
    score_unit: Literal["accuracy", "log_probability"]
    paired: bool
    """The same items, asked and scored in the same way: compared item by item."""
    same_models: bool
    """Both studies scored the very same trials, or the same base. Paired, no more than rounding can
    differ, so the difference has no interval; unpaired, the items differ, and it has one."""
    first: Estimate
    """Mean score in the first study."""
    second: Estimate
    difference: Estimate
    """Second minus first. Unpaired: the interval counts two samples of items, and has no p."""


class StudyPair(Record):
    """One study against the first one that was named."""

    first: str
    """Label of the first study."""
    second: str
    facets: tuple[Facet, ...]
    only_first: tuple[str, ...]
    """Arms that the first study alone has, with their training task."""
    only_second: tuple[str, ...]
    cells: tuple[ComparedCell, ...]
    notes: tuple[str, ...]
    """What a reader must know, a sentence each."""


class StudyComparison(Record):
    """What ``rankscope compare`` says; every further study is compared with the first."""

    studies: tuple[ComparedStudy, ...]
    pairs: tuple[StudyPair, ...]
