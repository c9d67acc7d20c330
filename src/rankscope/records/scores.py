"""Scores of a model on one split of a task, with the per-item scores."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rankscope.records.record import Estimate, Record, Split
from rankscope.records.trials import ScoredModel, Variant


class WithoutContamination(Record):
    """The primary score over the test items that are absent from the training rows."""

    contaminated: int  # Left out: they, or 13 of their words, are in the training rows
    score: float
    standard_error: float | None  # None where n < 2
    n: int


class EvalRecord(Record):
    """One model (the base or a trial) scored on one split of one task."""

    trial_id: str  # ``base`` for the untuned model
    variant: Variant | None = None  # Change of the trial's update; None if it is as trained
    task: str
    split: Split
    metric: str  # Primary metric: one of the keys of ``metrics``
    score: float  # Value of the primary metric: mean over items
    standard_error: float | None  # Error of the score, over items; None where n < 2
    n: int
    metrics: dict[str, float]  # Every one recorded, such as ``acc`` and ``exact_match``
    without_contamination: WithoutContamination | None = None  # With contaminated items
    truncated: int = 0  # Items cut at the start to fit the context, or at ``max_length``
    seconds: float
    num_tokens: int
    num_read: int = 0
    """Tokens of all prompts and offered answers. ``num_tokens`` counts a beginning that items share
    once. 0 means not counted, as in older studies."""

    @property
    def key(self) -> "EvalKey":
        return self.variant or self.trial_id, self.task, self.split


class CurvePoint(Record):
    """One trial scored during training, on the first items of a task's validation split.

    Its points over steps form the learning-forgetting curve (Biderman et al., arXiv 2405.09673). No
    choice depends on them.
    """

    trial_id: str
    task: str
    step: int  # Optimizer steps done
    metric: str  # Primary metric of the task
    score: float  # Mean over the items scored
    standard_error: float | None  # Error of the score, over items; None where n < 2
    n: int  # Items scored: the first of the validation split
    seconds: float
    num_tokens: int


class ModelScore(Record):
    """The base or a given model on one task, compared with the base on the same items."""

    model: str  # ``base``, or the given model's name
    record: EvalRecord
    change: Estimate | None
    """Model minus base, paired, with a 95 % interval. None for the base, and for a score that is no
    mean over items."""
    chance: float | None  # Score of guessing, if it is known
    score_unit: Literal["accuracy", "log_probability"] | None  # None for a metric in another unit
    num_fewshot: int
    source: str  # Where the rows came from, for people
    task_sha256: str  # Hash of everything that scores depend on, the model excepted
    other_base_forced: bool = False  # The adapter records another base


class ComparedCell(Record):
    """One arm in two studies, or the base of each, scored on the test split of one task."""

    trained_on: str | None  # None: the untuned bases
    arm: str | None  # Label of the arm; None: the untuned bases
    rank: int | None
    full: bool  # Full fine-tuning; False for the bases
    tested_on: str
    score_unit: Literal["accuracy", "log_probability"] | None
    paired: bool  # Same items, prompts and scoring: items are compared one by one
    same_models: bool
    """Whether both studies scored the same trials, or the same base. Paired scores can then differ
    only by rounding, and the difference has no interval. Unpaired scores are of different items,
    and the difference has one."""
    first: Estimate  # Mean score in the first study
    second: Estimate
    difference: Estimate  # Second minus first; unpaired, of two samples without p


EvalKey = tuple[ScoredModel, str, Split]  # (model, task, split)


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Per-item primary scores of one model on one split."""

    item_ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]  # Shape (items,)
    gold_logprobs: npt.NDArray[np.float64]
    """Log p of the right answer per token, nats, shape (items,); NaN where unknown. If answers are
    offered, it is conditional on one of them being the answer."""
    subjects: tuple[str | None, ...]
