"""A joined task is scored part by part, each asked and scored its own way."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rankscope.data.tasks import LoadedTask
from rankscope.evaluate import metrics as scorers
from rankscope.evaluate.metrics import mean, standard_error
from rankscope.records import EvalRecord, ItemResult, Split, WithoutContamination

Evaluation = tuple[EvalRecord, list[ItemResult]]
Scores = dict[str | None, Evaluation]


def primary_metric(task: LoadedTask) -> str:
    """Name of the metric that a task's score is; ``acc`` where parts of a joined one differ."""
    names = {scorers.primary_metric(part.spec) for part in task.parts or (task,)}
    return names.pop() if len(names) == 1 else "acc"


def without_contamination(
    task: LoadedTask, split: Split, results: Sequence[ItemResult]
) -> WithoutContamination | None:
    """The score of test items that no training row holds; None where all are, or none is."""
    contaminated = task.contaminated_ids if split == "test" else frozenset[str]()
    clean = [item.score for item in results if item.item_id not in contaminated]
    if not clean or len(clean) == len(results):
        return None
    return WithoutContamination(
        contaminated=len(results) - len(clean),
        score=mean(clean),
        standard_error=standard_error(clean),
        n=len(clean),
    )


def restricted(task: LoadedTask) -> list[LoadedTask]:
    """The parts with those of their items that the joined task has, parts without any left out."""
    kept = {item.item_id for item in (*task.validation, *task.test)}
    return [
        replace(
            part,
            validation=tuple(item for item in part.validation if item.item_id in kept),
            test=tuple(item for item in part.test if item.item_id in kept),
        )
        for part in task.parts
    ]


def evaluate_parts(task: LoadedTask, split: Split, score: Callable[[LoadedTask], Scores]) -> Scores:
    """Score every part by ``score`` and put the items together in the joined task's order."""
    items = task.validation if split == "validation" else task.test
    parts = [
        score(part)
        for part in restricted(task)
        if (part.validation if split == "validation" else part.test)
    ]
    return {
        adapter_name: merged(task, split, [found[adapter_name] for found in parts], items)
        for adapter_name in parts[0]
    }


def merged(
    task: LoadedTask, split: Split, parts: list[Evaluation], items: tuple[object, ...]
) -> Evaluation:
    """One record of several: scores are means over all items."""
    by_id = {result.item_id: result for _, results in parts for result in results}
    ordered = [by_id[item.item_id] for item in items]  # type: ignore[attr-defined]
    scores = [result.score for result in ordered]
    name = primary_metric(task)
    record = EvalRecord(
        trial_id=parts[0][0].trial_id,
        task=task.spec.name,
        split=split,
        metric=name,
        score=mean(scores),
        standard_error=standard_error(scores),
        n=len(scores),
        metrics={
            name: mean(scores),
            **{f"{part.task}.{part.metric}": part.score for part, _ in parts},
            **(
                {"not_finite": 1.0}
                if any(p.metrics.get("not_finite") == 1 for p, _ in parts)
                else {}
            ),
        },
        without_contamination=without_contamination(task, split, ordered),
        truncated=sum(part.truncated for part, _ in parts),
        seconds=sum(part.seconds for part, _ in parts),
        num_tokens=sum(part.num_tokens for part, _ in parts),
    )
    return record, ordered
