"""Retention subject by subject: the parts of the whole, nothing more."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.advise.arms import MOST_ARMS, compared_arm_labels, subject_changes
from rankscope.advise.recommend import recommend
from rankscope.advise.statistics.estimates import paired_estimate
from rankscope.advise.statistics.significance import holm
from rankscope.records import BASE, StudyRecords

TRUTH = Truth(subjects=5, num_items=60, lrs=(1e-3, 2e-3), retention=("general", "text"))


@pytest.fixture(scope="module")
def study() -> StudyRecords:
    return synthetic_study(TRUTH)


def test_a_change_is_that_of_the_subjects_items(study: StudyRecords) -> None:
    found = recommend(study).subjects
    change = next(c for c in found if (c.label, c.tested_on, c.subject)
                  == ("full lr=0.0005", "text", "subject 3"))  # fmt: skip
    # synthetic_study: item i has the subject i modulo 5.
    rows = [
        study.items[i, "text", "test"].scores[3::5]
        for i in (BASE, *(f"med-full-0.0005-{seed}" for seed in (0, 1, 2)))
    ]
    expected = paired_estimate(np.stack(rows[1:]), rows[0])
    assert change.change.model_copy(update={"p_holm": None}) == expected
    assert change.change.n == 12


def test_the_subjects_make_up_the_change_of_the_task(study: StudyRecords) -> None:
    advice = recommend(study)
    found = subject_changes(study, advice.advice)
    checked = []
    for arm in advice.advice[0].arms:
        for task, whole in arm.retention.items():
            parts = [c.change for c in found if (c.label, c.tested_on) == (arm.label, task)]
            if parts:
                mean = sum(e.value * e.n for e in parts) / sum(e.n for e in parts)
                assert mean == pytest.approx(whole.value)
                checked.append((arm.label, task))
    assert set(checked) == {(c.label, c.tested_on) for c in found}
    assert {task for _, task in checked} == {"general", "text"}


def test_one_arm_is_one_family_and_only_compared_arms_are_looked_at(study: StudyRecords) -> None:
    advice = recommend(study)
    found = subject_changes(study, advice.advice)
    labels = list(dict.fromkeys(c.label for c in found))
    assert set(labels) == compared_arm_labels(advice.advice[0])
    assert 4 <= len(labels) < 7  # of six LoRA arms one rate for each rank, and full fine-tuning
    for label in labels:
        changes = [c.change for c in found if c.label == label]
        assert len(changes) == 10
        assert [e.p_holm for e in changes] == pytest.approx(holm([e.p or 0.0 for e in changes]))


def test_tasks_without_subjects_have_none(study: StudyRecords) -> None:
    alone = {
        key: replace(scores, subjects=(None,) * len(scores.subjects))
        for key, scores in study.items.items()
    }
    bare = replace(study, items=alone)
    assert recommend(bare).subjects == ()
    one = synthetic_study(replace(TRUTH, subjects=1))
    assert recommend(one).subjects == ()


def test_a_large_grid_is_cut() -> None:
    ranks = tuple(range(1, MOST_ARMS + 6))
    large = synthetic_study(Truth(subjects=5, num_items=10, ranks=ranks, seeds=(0,)))
    labels = {c.label for c in recommend(large).subjects}
    assert len(labels) == MOST_ARMS
