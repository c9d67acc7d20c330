"""Metrics from log-probabilities and item scores; no model is involved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rankscope.records import ItemResult


@dataclass(slots=True)
class ModelScores:
    """One model scored on one split: per-item results in item order, and their summary."""

    items: "list[ItemResult]"
    metrics: dict[str, float]
    seconds: float = 0.0
    num_tokens: int = 0  # Tokens computed, padding not counted
    num_read: int = 0  # As of ``EvalRecord``
    failure: str = ""  # Why the model cannot be scored


def first_best(values: Sequence[float]) -> int | None:
    """Return the index of the largest value; the first one wins ties. None if a value is NaN."""
    if any(math.isnan(value) for value in values):
        return None
    return max(range(len(values)), key=values.__getitem__)


def choice_predictions(
    option_logprobs: Sequence[float], option_tokens: Sequence[int], choices: Sequence[str]
) -> dict[str, int | None]:
    """Pick an option by each metric; None if a log-probability is NaN.

    Returns:
        ``acc``: largest log p(option | prompt). ``acc_norm``: largest per character of the option's
        text, without the space before it, as in lm-evaluation-harness 0.4.13. ``acc_bytes``:
        largest per UTF-8 byte of that text. ``acc_token``: largest per token.
    """
    lengths = {
        "acc": [1] * len(choices),
        "acc_norm": [max(1, len(text)) for text in choices],
        "acc_bytes": [max(1, len(text.encode())) for text in choices],
        "acc_token": option_tokens,
    }
    return {
        metric: first_best([p / n for p, n in zip(option_logprobs, divisors, strict=True)])
        for metric, divisors in lengths.items()
    }


def standard_error(scores: Sequence[float]) -> float | None:
    """Return the standard error of the mean from the sample variance; None if n < 2."""
    if len(scores) < 2:
        return None
    return float(np.std(scores, ddof=1) / math.sqrt(len(scores)))


def is_mean(score: float, item_scores: Sequence[float]) -> bool:
    """Whether a score is the mean of its items, unlike a perplexity or an F1."""
    return math.isclose(score, fmean(item_scores), rel_tol=1e-9, abs_tol=1e-12)
