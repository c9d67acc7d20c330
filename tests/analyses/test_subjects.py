"""Retention by subject: the changes, and the map that shows them."""

from dataclasses import replace

import numpy as np
import pytest
from advice import paired_estimate
from report_studies import cells, study_and_advice
from synthetic_study import Truth

from rankscope.advise.statistics.significance import holm
from rankscope.analyses.subjects.figures import (
    MOST_ARMS,
    SubjectChanges,
    changes_figure,
    draw_subjects,
    subject_changes,
)
from rankscope.records import BASE
from rankscope.report.study_view import StudyView

TRUTH = Truth(subjects=5, num_items=60, lrs=(1e-3, 2e-3), retention=("general", "text"))


def changes_of(truth: Truth) -> SubjectChanges:
    study, advice = study_and_advice(truth)
    return subject_changes(study, advice.advice[0])


def test_subjects_of_retention_make_up_the_change_of_their_task() -> None:
    """Of the arms that the advice compares, one Holm family for each."""
    study, found = study_and_advice(TRUTH)
    changes = subject_changes(study, found.advice[0])
    labels = {label for label, _, _ in changes}
    pairs = [(c.first_label, c.second_label) for c in found.advice[0].comparisons]
    assert labels == {found.advice[0].chosen.label, *(label for pair in pairs for label in pair)}
    assert 4 <= len(labels) < 7
    for arm in [a for a in found.advice[0].arms if a.label in labels]:
        of_arm = {key: change for key, change in changes.items() if key[0] == arm.label}
        ps = [change.p for change in of_arm.values()]
        assert [change.p_holm for change in of_arm.values()] == pytest.approx(holm(ps))
        for task, whole in arm.retention.items():
            parts = [change for key, change in of_arm.items() if key[1] == task]
            mean = sum(e.value * e.n for e in parts) / sum(e.n for e in parts)
            assert (len(parts), mean) == (5, pytest.approx(whole.value))
    models = (BASE, *(f"med-full-0.0005-{seed}" for seed in (0, 1, 2)))
    rows = [study.items[i, "text", "test"].scores[3::5] for i in models]  # item i modulo 5
    change = changes["full lr=0.0005", "text", "subject 3"]
    assert change.model_copy(update={"p_holm": None}) == paired_estimate(
        np.stack(rows[1:]), rows[0]
    )


def test_tasks_of_one_subject_are_left_out_and_so_are_arms_beyond_a_limit() -> None:
    assert changes_of(replace(TRUTH, subjects=1)) == {}
    ranks = tuple(range(1, MOST_ARMS + 6))
    large = changes_of(Truth(subjects=5, num_items=10, ranks=ranks, seeds=(0,)))
    assert len({label for label, _, _ in large}) == MOST_ARMS


def test_subjects_that_fell_most_stand_on_top() -> None:
    study, advice = study_and_advice(replace(TRUTH, retention=("general",)))
    figure = draw_subjects(StudyView(study, advice), "med")
    (drawn,) = figure.plot.data
    assert figure.choices[0].label == "general"
    means = [sum(row) / len(row) for row in drawn.z]
    assert means == pytest.approx(sorted(means))
    changes = subject_changes(study, advice.advice[0])
    assert len(drawn.y) * len(drawn.x) == len(changes) == len(figure.data)
    shown = {row[:3]: row[3] for row in cells(figure)}
    assert shown == {key: 100 * change.value for key, change in changes.items()}


def test_the_named_subject_has_some_items_and_its_task_is_drawn_first() -> None:
    """The subject of the largest fall has fewer items than a sentence needs."""
    view = StudyView(*study_and_advice(replace(TRUTH, subjects=4)))
    fallen = {("general", "subject 0"): (-0.9, 4), ("text", "subject 1"): (-0.8, 15)}
    changes = {}
    for key, change in subject_changes(view.study, view.advice("med")).items():
        value, n = fallen.get(key[1:], (0.0, 15))
        changes[key] = change.model_copy(update={"value": value, "n": n})
    figure = changes_figure(view, "med", changes)
    assert [choice.label for choice in figure.choices] == ["text", "general"]
    lowest = "the lowest change is \N{MINUS SIGN}80.0 points on subject 1 (text, 15 items)"
    assert figure.finding.startswith(f"{view.focus('med').label}: {lowest}")
    assert changes_figure(view, "med", {}) is None
