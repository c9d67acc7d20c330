"""Pure scoring: from log-probabilities and generated text to scores. No model is needed here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.config.task import Scorer
from rankscope.data.registry import TaskSpec
from rankscope.records import ItemResult

PRIMARY_METRIC: dict[Scorer, str] = {
    "option_text": "acc",
    "option_letter": "letter",
    "number": "exact_match",
    "exact_match": "exact_match",
    "loss": "logprob_per_token",
    "perplexity": "logprob_per_token",
}
"""PrimaryMetric metric of each scorer: the key of ``EvalRecord.metrics`` that ``score`` repeats."""


@dataclass(frozen=True, slots=True)
class ModelScores:
    """One model scored on one split: per-item results in item order, and their summary."""

    items: list[ItemResult]
    metrics: dict[str, float]
    seconds: float
    num_tokens: int
    """Valid tokens computed, padding not counted."""


def primary_metric(spec: TaskSpec) -> str:
    """The metric a task is reported by."""
    return spec.primary_metric or PRIMARY_METRIC[spec.scorer]


def normalized_answer(text: str) -> str:
    """An answer for comparison: case folded, one space between words, no full stop at its end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def first_best(values: Sequence[float]) -> int | None:
    """Index of the largest value; the first one wins ties. None where a value is NaN."""
    if any(math.isnan(value) for value in values):
        return None
    return max(range(len(values)), key=values.__getitem__)


def choice_predictions(
    option_logprobs: Sequence[float], option_tokens: Sequence[int], choices: Sequence[str]
) -> dict[str, int | None]:
    """Which option each metric picks.

    Returns:
        ``acc``: largest log p(option | prompt). ``acc_norm``: largest per character of the option's
        text, the space before it not counted, which is what lm-evaluation-harness 0.4.13 divides by
        under this name; ``acc_bytes``: largest per byte of its UTF-8, the same under that name.
        ``acc_token``: largest per token. None where a log-probability is NaN.
    """
    rows = list(zip(option_logprobs, option_tokens, choices, strict=True))
    return {
        "acc": first_best([logprob for logprob, _, _ in rows]),
        "acc_norm": first_best([logprob / max(1, len(text)) for logprob, _, text in rows]),
        "acc_bytes": first_best(
            [logprob / max(1, len(text.encode())) for logprob, _, text in rows]
        ),
        "acc_token": first_best([logprob / tokens for logprob, tokens, _ in rows]),
    }


def standard_error(scores: Sequence[float]) -> float | None:
    """Standard error of the mean from the sample variance; None where n < 2."""
    if len(scores) < 2:
        return None
    return float(np.std(scores, ddof=1) / math.sqrt(len(scores)))


def mean(scores: Sequence[float]) -> float:
    """Mean of at least one score, summed without rounding so that order plays no part."""
    return math.fsum(scores) / len(scores)
