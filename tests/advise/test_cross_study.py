"""Arms of two studies against each other: paired only on the same items, and never otherwise."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_own_trials, with_tasks

from rankscope.advise.comparisons import compare_cells, paired_in
from rankscope.advise.statistics.estimates import (
    Comparison,
    paired_estimate,
    unpaired_difference,
    weighted_estimate,
)
from rankscope.advise.statistics.significance import holm
from rankscope.records import BASE, Estimate, StudyRecords

FIRST = Truth(ranks=(2, 8), num_items=60)
SECOND = Truth(ranks=(8, 32), num_items=60)


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=100, seeds=1)


def second_study() -> StudyRecords:
    """Another study's trials, on the same items."""
    return with_own_trials(synthetic_study(SECOND, seed=1), "#1")


def on_other_items(study: StudyRecords) -> StudyRecords:
    """The same records under another hash of every task."""
    return with_tasks(study, **{t.name: {"sha256": "1" * 64} for t in study.tasks})


def test_unpaired_difference_by_hand() -> None:
    """Zou & Donner 2008: .6 (.5 to .7) less .5 (.44 to .58); sqrt(.1^2 + .08^2) = .128062 below,
    sqrt(.1^2 + .06^2) = .116619 above."""
    found = unpaired_difference(estimate(0.6, 0.5, 0.7), estimate(0.5, 0.44, 0.58))
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - 0.128062, abs=1e-6)
    assert found.high == pytest.approx(0.1 + 0.116619, abs=1e-6)
    assert found.p is None
    unknown = unpaired_difference(estimate(0.6, None, None), estimate(0.5, 0.44, 0.58))
    assert (unknown.low, unknown.high) == (None, None)


def test_on_the_same_items_arms_in_both_are_compared_item_by_item() -> None:
    first, second = synthetic_study(FIRST), second_study()
    cells = compare_cells(first, second)
    assert {(c.arm, c.tested_on) for c in cells} == {
        (arm, task)
        for arm in (None, "r=8 lr=0.001", "full lr=0.0005")
        for task in ("med", "math", "general")
    }
    cell = next(c for c in cells if c.arm == "r=8 lr=0.001" and c.tested_on == "general")
    rows = [
        np.stack([s.items[f"med-8-0.001-{i}{end}", "general", "test"].scores for i in (0, 1, 2)])
        for s, end in ((first, ""), (second, "#1"))
    ]
    expected = paired_estimate(rows[1], rows[0])
    assert cell.paired
    assert cell.difference.model_copy(update={"p_holm": None}) == expected
    assert cell.first == weighted_estimate([Comparison(rows[0], None)], tested=False)
    other_base = second.model.model_copy(update={"sha256": "1" * 64})
    cells = compare_cells(first, replace(second, model=other_base))
    base = next(c for c in cells if c.arm is None and c.tested_on == "med")
    ones = [s.items[BASE, "med", "test"].scores for s in (first, second)]
    assert base.difference == paired_estimate(ones[1][None], ones[0])
    assert base.difference.p_holm is None


def test_training_rows_do_not_part_the_same_report_items() -> None:
    """Two hashes: all of a task's rows, and its test items with how they are asked."""
    first = synthetic_study(FIRST)
    tasks = tuple(t.model_copy(update={"test_sha256": "r" + t.sha256}) for t in first.tasks)
    first = replace(first, tasks=tasks)
    others = tuple(t.model_copy(update={"sha256": "more rows"}) for t in tasks)
    assert paired_in(first, replace(first, tasks=others), tasks[0].name)
    asked_otherwise = tuple(t.model_copy(update={"test_sha256": "other"}) for t in others)
    assert not paired_in(first, replace(first, tasks=asked_otherwise), tasks[0].name)


def test_on_other_items_nothing_is_paired() -> None:
    first, second = synthetic_study(FIRST), on_other_items(second_study())
    for cell in compare_cells(first, second):
        assert not cell.paired
        assert cell.difference == unpaired_difference(cell.second, cell.first)
        assert cell.difference.p is None


def test_cells_without_a_test_are_not_in_the_family() -> None:
    second = second_study()
    second = with_tasks(second, math={"sha256": "1" * 64}, general={"sha256": "1" * 64})
    cells = compare_cells(synthetic_study(FIRST), second)
    trained = [c for c in cells if c.arm is not None]
    assert [c.paired for c in trained] == [c.tested_on == "med" for c in trained]
    paired = [c.difference for c in trained if c.paired]
    ps = [e.p for e in paired if e.p is not None]
    assert len(ps) == len(paired) == 2
    assert [e.p_holm for e in paired] == pytest.approx(holm(ps))
    assert all(c.difference.p_holm is None for c in trained if not c.paired)


def test_of_the_very_same_models_there_is_nothing_to_estimate() -> None:
    study = synthetic_study(FIRST)
    for cell in compare_cells(study, study):
        assert cell.same_models
        e = cell.difference
        assert (e.value, e.low, e.high, e.p, e.p_holm) == (0, None, None, None, None)


def test_nats_per_token_are_compared_where_the_tokenizer_is_known_to_be_the_same() -> None:
    nats = replace(FIRST, metric="log_probability", ranks=(8,))
    first, second = synthetic_study(nats), with_own_trials(synthetic_study(nats, seed=1), "#1")
    base = second.model.model_copy(update={"sha256": "1" * 64})
    assert compare_cells(first, replace(second, model=base))  # the tasks' hashes cover it
    assert compare_cells(first, on_other_items(second))  # the same base
    assert compare_cells(first, replace(on_other_items(second), model=base)) == ()


def test_scores_of_another_unit_and_arms_that_did_not_finish_have_no_cell() -> None:
    nats = synthetic_study(replace(SECOND, metric="log_probability"))
    assert compare_cells(synthetic_study(FIRST), nats) == ()
    second = second_study()
    exact = with_tasks(second, med={"metric": "exact_match"})
    cells = compare_cells(synthetic_study(FIRST), exact)
    assert {c.tested_on for c in cells} == {"math", "general"}
    lost = {(8, 1e-3, seed): "diverged" for seed in (0, 1, 2)}
    cells = compare_cells(synthetic_study(FIRST), synthetic_study(replace(SECOND, failed=lost)))  # type: ignore[arg-type]
    assert {c.arm for c in cells} == {None, "full lr=0.0005"}
