"""Scores by another primary_metric, or of a part of an answer, out of what was measured."""

import re
from collections.abc import Sequence
from dataclasses import replace

from rankscope.data.items import Item
from rankscope.data.numbers import extract_number, gold_number
from rankscope.data.registry import TaskSpec
from rankscope.evaluate.metrics import (
    PRIMARY_METRIC,
    ModelScores,
    choice_predictions,
    first_best,
    mean,
    normalized_answer,
)
from rankscope.records import ItemResult


def as_asked(scores: ModelScores, items: Sequence[Item], spec: TaskSpec) -> ModelScores:
    """The scores with the task's own ``primary_metric`` and ``extract``, where it has them."""
    if spec.primary_metric is not None and spec.primary_metric != PRIMARY_METRIC[spec.scorer]:
        found = [
            by_metric(result, item, spec.primary_metric)
            for result, item in zip(scores.items, items, strict=True)
        ]
        return replace(scores, items=found)
    if spec.extract is not None:
        return extracted(scores, items, spec)
    return scores


def by_metric(result: ItemResult, item: Item, metric: str) -> ItemResult:
    """A multiple-choice result whose score and prediction are those of another metric."""
    if metric == "letter":
        scored = result.letter_logprobs
        pick = None if scored is None else first_best(scored)
    else:
        scored, tokens = result.option_logprobs, result.option_tokens
        assert scored is not None
        assert tokens is not None
        pick = choice_predictions(scored, tokens, item.choices)[metric]
    assert scored is not None
    assert item.answer is not None
    is_finite = result.gold_logprob is not None
    return replace(
        result,
        score=float(is_finite and pick == item.answer),
        prediction="" if pick is None else item.choices[pick],
        gold_logprob=scored[item.answer] if is_finite else None,
    )


def extracted(scores: ModelScores, items: Sequence[Item], spec: TaskSpec) -> ModelScores:
    """Written answers judged by the part that the task's pattern finds first.

    A gold answer in which the pattern finds nothing is compared whole. ``answered`` is the share of
    answers in which it was found.
    """
    assert spec.extract is not None
    pattern = re.compile(spec.extract)
    results: list[ItemResult] = []
    answered: list[float] = []
    for result, item in zip(scores.items, items, strict=True):
        part = part_of(pattern, result.generated or "")
        found = None if part is None else compared(part, spec)
        gold = gold_of(pattern, item, spec)
        results.append(
            replace(result, gold=gold, prediction=found or "", score=float(found == gold))
        )
        answered.append(float(found is not None))
    metrics = {
        **scores.metrics,
        "exact_match": mean([result.score for result in results]),
        "answered": mean(answered),
    }
    return replace(scores, items=results, metrics=metrics)


def gold_of(pattern: re.Pattern[str], item: Item, spec: TaskSpec) -> str:
    """What an extracted answer must equal."""
    if spec.scorer == "number":
        return gold_number(item.reference) or item.reference
    part = part_of(pattern, item.completion)
    return normalized_answer(item.reference or item.completion if part is None else part)


def part_of(pattern: re.Pattern[str], text: str) -> str | None:
    """The pattern's first match: its group, or all of it where it has none."""
    match = pattern.search(text)
    if match is None:
        return None
    found: str | None = match.group(pattern.groups)
    return found


def compared(text: str, spec: TaskSpec) -> str | None:
    """An answer's part as it is compared: a number, or text."""
    return extract_number(text) if spec.scorer == "number" else normalized_answer(text)
