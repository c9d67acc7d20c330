"""Arms of two studies against each other: paired only on the same items, and never otherwise."""

from dataclasses import replace

import numpy as np
import pytest
from advice import paired_estimate
from synthetic_study import Truth, synthetic_study, with_own_trials, with_tasks

from rankscope.advise.comparisons import compare_cells, paired_in
from rankscope.advise.statistics.estimates import unpaired_difference
from rankscope.records import Estimate, StudyRecords

FIRST = Truth(ranks=(2, 8), num_items=60)
SECOND = Truth(ranks=(8, 32), num_items=60)
EIGHT = "r=8 lr=0.001"


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=100, seeds=1)


def second_study(truth: Truth = SECOND) -> StudyRecords:
    """Another study's trials, on the same items."""
    return with_own_trials(synthetic_study(truth, seed=1), "#1")


def hashed(study: StudyRecords, *tasks: str, **fields: str) -> StudyRecords:
    return with_tasks(study, **{t: fields or {"sha256": "1" * 64} for t in tasks})


def test_unpaired_difference_by_hand() -> None:
    """Zou & Donner 2008: 0.6 (0.5 to 0.7) less 0.5 (0.44 to 0.58).
    Below it lies sqrt(0.1^2 + 0.08^2) = 0.128062, above it sqrt(0.1^2 + 0.06^2) = 0.116619."""
    found = unpaired_difference(estimate(0.6, 0.5, 0.7), estimate(0.5, 0.44, 0.58))
    ends = (found.value, found.low, found.high)
    assert ends == pytest.approx((0.1, 0.1 - 0.128062, 0.1 + 0.116619), abs=1e-6)
    unknown = unpaired_difference(estimate(0.6, None, None), estimate(0.5, 0.44, 0.58))
    assert (unknown.low, unknown.high) == (None, None)


def test_on_the_same_items_arms_in_both_are_compared_item_by_item() -> None:
    """Tasks whose hashes differ are compared as two samples."""
    first, second = synthetic_study(FIRST), hashed(second_study(), "math")
    cells = compare_cells(first, second)
    tasks, arms = ("med", "math", "general"), (None, EIGHT, "full lr=0.0005")
    assert {(c.arm, c.tested_on) for c in cells} == {(a, t) for a in arms for t in tasks}
    cell = next(c for c in cells if (c.arm, c.tested_on) == (EIGHT, "general"))
    rows = [
        np.stack([s.items[f"med-8-0.001-{i}{end}", "general", "test"].scores for i in (0, 1, 2)])
        for s, end in ((first, ""), (second, "#1"))
    ]
    assert cell.difference == paired_estimate(rows[1], rows[0])
    for c in cells:
        assert c.paired == (c.tested_on != "math")
        assert c.paired or c.difference == unpaired_difference(c.second, c.first)


def test_training_rows_do_not_part_the_same_report_items() -> None:
    """Two hashes: all of a task's rows, and its test items with how they are asked."""
    first = hashed(synthetic_study(FIRST), "med", test_sha256="r")
    assert paired_in(first, hashed(first, "med"), "med")
    assert not paired_in(first, hashed(first, "med", sha256="1", test_sha256="other"), "med")


def test_of_the_very_same_models_there_is_nothing_to_estimate() -> None:
    study = synthetic_study(FIRST)
    for cell in compare_cells(study, study):
        e = cell.difference
        assert (cell.same_models, e.value, e.low, e.high) == (True, 0, None, None)


def test_what_cannot_be_subtracted_has_no_cell() -> None:
    """Nats of two tokenizers, another unit or metric, arms that did not finish."""
    nats = replace(FIRST, metric="log_probability", ranks=(8,))
    first, second = synthetic_study(nats), second_study(nats)
    elsewhere = hashed(second, "med", "math", "general")
    model = second.model.model_copy(update={"sha256": "1" * 64})
    assert compare_cells(first, replace(second, model=model))  # the tasks' hashes cover it
    assert compare_cells(first, elsewhere)  # the same base
    assert compare_cells(first, replace(elsewhere, model=model)) == ()
    assert compare_cells(synthetic_study(FIRST), second) == ()
    exact = with_tasks(second_study(), med={"metric": "exact_match"})
    cells = compare_cells(synthetic_study(FIRST), exact)
    assert {c.tested_on for c in cells} == {"math", "general"}
    lost = {(8, 1e-3, seed): "diverged" for seed in (0, 1, 2)}
    cells = compare_cells(synthetic_study(FIRST), synthetic_study(replace(SECOND, failed=lost)))
    assert {c.arm for c in cells} == {None, "full lr=0.0005"}
