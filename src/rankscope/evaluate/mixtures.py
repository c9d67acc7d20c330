"""A mixture of tasks is scored part by part, each part with its own prompts and scorer."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rankscope.data.items import Item
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.metrics import exact_mean, standard_error
from rankscope.evaluate.scorers import get_scorer
from rankscope.records import EvalRecord, ItemResult, Split, WithoutContamination

Evaluation = tuple[EvalRecord, list[ItemResult]]  # One model on one split: record, items


def primary_metric(task: LoadedTask) -> str:
    """The metric that a task's score is; ``acc`` if the parts of a mixture differ."""
    names = {
        part.spec.primary_metric or get_scorer(part.spec.scorer).default_metric
        for part in task.parts or (task,)
    }
    return names.pop() if len(names) == 1 else "acc"


def split_items(task: LoadedTask, split: Split) -> tuple[Item, ...]:
    return task.validation if split == "validation" else task.test


def without_contamination(
    task: LoadedTask, split: Split, results: Sequence[ItemResult]
) -> WithoutContamination | None:
    """The score over test items that no training row holds; None if all are, or none is."""
    contaminated = task.contaminated_ids if split == "test" else frozenset[str]()
    clean = [item.score for item in results if item.item_id not in contaminated]
    if not clean or len(clean) == len(results):
        return None
    return WithoutContamination(
        contaminated=len(results) - len(clean),
        score=exact_mean(clean),
        standard_error=standard_error(clean),
        n=len(clean),
    )


def evaluate_mixture(
    task: LoadedTask, split: Split, evaluate: Callable[[LoadedTask], dict[str | None, Evaluation]]
) -> dict[str | None, Evaluation]:
    """Score every part by ``evaluate``, and merge the items in the mixture's order."""
    items = split_items(task, split)
    kept = {item.item_id for item in items}
    parts = []
    for part in task.parts:
        of_part = tuple(item for item in split_items(part, split) if item.item_id in kept)
        if of_part:
            is_test = split == "test"
            parts.append(
                evaluate(
                    replace(part, test=of_part) if is_test else replace(part, validation=of_part)
                )
            )
    return {
        name: merged_evaluation(task, split, [part[name] for part in parts]) for name in parts[0]
    }


def merged_evaluation(task: LoadedTask, split: Split, parts: Sequence[Evaluation]) -> Evaluation:
    by_id = {result.item_id: result for _, results in parts for result in results}
    results = [by_id[item.item_id] for item in split_items(task, split)]
    scores = [result.score for result in results]
    records = [record for record, _ in parts]
    metric = primary_metric(task)
    metrics = {metric: exact_mean(scores)}
    metrics |= {f"{record.task}.{record.metric}": record.score for record in records}
    record = EvalRecord(
        trial_id=records[0].trial_id,
        task=task.spec.name,
        split=split,
        metric=metric,
        score=exact_mean(scores),
        standard_error=standard_error(scores),
        n=len(scores),
        metrics=metrics,
        without_contamination=without_contamination(task, split, results),
        truncated=sum(record.truncated for record in records),
        seconds=sum(record.seconds for record in records),
        num_tokens=sum(record.num_tokens for record in records),
    )
    return record, results
