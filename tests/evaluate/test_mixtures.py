"""A mixture is scored part by part."""

import dataclasses
from typing import Any

import pytest
from evaluation_worlds import (
    base,
    choice_items,
    encoder,
    joined_of,
    loaded,
    number_items,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.evaluator import evaluate_task, task_sha256
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def mixture(contaminated: frozenset[str] = frozenset()) -> LoadedTask:
    """Multiple choice and answers that are generated."""
    parts = loaded(choice_items(), "option_text"), loaded(number_items(), "number")
    return dataclasses.replace(joined_of(*parts), contaminated_ids=contaminated)


def test_a_record_counts_what_is_contaminated_and_what_was_cut() -> None:
    contaminated = frozenset({"toy/test/1", "0/toy/test/2"})
    found = evaluate_task(base(), encoder(), mixture(contaminated), "test", {None: BASE}, SETTINGS)
    record, results = found[None]
    clean = [result.score for result in results if result.item_id not in contaminated]
    assert record.n == len(results) == 10
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (2, 8)
    assert record.without_contamination.score == pytest.approx(sum(clean) / 8)
    task = mixture()
    parts = [
        dataclasses.replace(
            part,
            test=(dataclasses.replace(part.test[0], prompt="the " * 300), *part.test[1:]),
        )
        for part in task.parts
    ]
    settings = SETTINGS.model_copy(update={"too_long": "truncate_left"})
    task = dataclasses.replace(task, parts=tuple(parts))
    record, _ = evaluate_task(base(), encoder(), task, "test", {None: BASE}, settings)[None]
    assert (record.truncated, record.without_contamination) == (2, None)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "change",
    [{"primary_metric": "acc_norm"}, {"extract": "[0-9]"}, {"stop": ("x",)}, {"version": 7}],
)
def test_how_any_part_is_scored_is_in_the_hash(change: dict[str, Any], place: int) -> None:
    task = mixture()
    parts = list(task.parts)
    spec = dataclasses.replace(parts[place].spec, **change)
    parts[place] = dataclasses.replace(parts[place], spec=spec)
    other = dataclasses.replace(task, parts=tuple(parts))
    first, second = (task_sha256(t, encoder(), "t" * 64, SETTINGS, t.sha256) for t in (task, other))
    assert first != second
