"""What evaluation gave: a model's score on a split, and its results item by item."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankscope.records.record import Record, Split


class WithoutContamination(Record):
    """The primary score over test items that no training row holds."""

    contaminated: int
    """Items left out: they, or 13 of their words in a row, stand in training rows."""
    score: float
    standard_error: float | None
    """None where n < 2."""
    n: int


class EvalRecord(Record):
    """One model (the base or a trial) scored on one split of one task."""

    trial_id: str
    """``base`` for the untuned model."""
    task: str
    split: Split
    metric: str
    """Headline metric: one of the keys of ``metrics``."""
    score: float
    """Value of the primary metric: mean over items."""
    standard_error: float | None
    """Of the score, over items; None where n < 2."""
    n: int
    metrics: dict[str, float]
    """Every metric recorded, such as ``acc``, ``acc_norm``, ``letter``, ``exact_match``."""
    without_contamination: WithoutContamination | None = None
    """Of the test split, where some of its items contaminated into training rows."""
    truncated: int = 0
    """Items not scored whole: cut at their beginning, since they did not fit the model's context,
    or, by their likelihood, scored up to ``max_length`` tokens."""
    seconds: float
    num_tokens: int


class CurvePoint(Record):
    """One trial scored while it trained, on the first items of a task's validation split.

    Its points over steps are the learning-forgetting curve (Biderman et al., arXiv 2405.09673).
    Nothing is chosen by them.
    """

    trial_id: str
    task: str
    step: int
    """Optimizer steps done."""
    metric: str
    """Headline metric of the task."""
    score: float
    """Mean over the items scored."""
    standard_error: float | None
    """Of the score, over items; None where n < 2."""
    n: int
    """Items scored: the first of the validation split."""
    seconds: float
    num_tokens: int


EvalKey = tuple[str, str, Split]
"""(trial id or ``base``, task, split)."""


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Per-item primary scores of one model on one split: the material of every statistic."""

    item_ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    """Shape (items,)."""
    gold_logprobs: npt.NDArray[np.float64]
    """Shape (items,); NaN where unknown."""
    subjects: tuple[str | None, ...]
