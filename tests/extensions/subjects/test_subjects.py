"""Changes by subject: the changes with their intervals, the map, the sentence and the table."""

from dataclasses import replace

import numpy as np
import pytest
from advice import paired_estimate
from report_studies import cells, study_and_advice
from scipy import stats
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.recommend import recommend
from rankscope.extensions.subjects.figures import (
    MOST_ARMS,
    SubjectChanges,
    draw_subjects,
    subject_changes,
)
from rankscope.formatting import POINTS, with_interval
from rankscope.records import BASE, StudyRecords
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.tables import study_tables

TRUTH = Truth(subjects=5, num_items=60, lrs=(1e-3, 2e-3), retention=("general", "text"))


def changes_of(truth: Truth) -> SubjectChanges:
    study, advice = study_and_advice(truth)
    return subject_changes(study, advice.advice[0])


def test_subjects_make_up_the_change_of_their_task() -> None:
    """On the training task, on retention and cross-domain tasks, of the arms that the advice
    compares: the mean weighted by items is the whole change."""
    study, found = study_and_advice(TRUTH)
    (advice,) = found.advice
    changes = subject_changes(study, advice)
    labels = {label for label, _, _ in changes}
    pairs = [(c.first_label, c.second_label) for c in advice.comparisons]
    assert labels == {advice.chosen.label, *(label for pair in pairs for label in pair)}
    assert 4 <= len(labels) < 7
    for arm in [a for a in advice.arms if a.label in labels]:
        of_arm = [key[1] for key in changes if key[0] == arm.label]
        assert list(dict.fromkeys(of_arm)) == ["med", "math", "general", "text"]
        for task in of_arm:
            parts = [e for key, e in changes.items() if key[:2] == (arm.label, task)]
            mean = sum(e.value * e.n for e in parts) / sum(e.n for e in parts)
            assert (len(parts), mean) == (5, pytest.approx(change_on(arm, task).value))
    models = (BASE, *(f"med-full-0.0005-{seed}" for seed in (0, 1, 2)))
    rows = [study.items[i, "text", "test"].scores[3::5] for i in models]  # item i modulo 5
    change = changes["full lr=0.0005", "text", "subject 3"]
    single = paired_estimate(np.stack(rows[1:]), rows[0])
    ends = {"low": single.low, "high": single.high}
    assert change.model_copy(update=ends) == single
    assert change.low < single.low < single.high < change.high


def with_three_groups(truth: Truth) -> StudyRecords:
    """On med every model gets subject 0 right where the base was wrong, the base alone gets
    subject 2 right, and nothing else differs."""
    right = {"subject 0": (0, 1), "subject 1": (1, 1), "subject 2": (1, 0)}
    kinds = [right[f"subject {i % 3}"] for i in range(truth.num_items)]
    return with_scores(
        synthetic_study(truth),
        lambda key, scores: (
            [tuned if key[0] != BASE else base for base, tuned in kinds]
            if key[1] == "med"
            else np.ones(len(scores))
        ),
    )


def test_best_and_worst_of_three_groups_by_hand() -> None:
    """Ten changes of +1, 0 or -1, and one more each way: 12 of mean 10/12, 0 or -10/12, within t of
    11 degrees at .05 / 3 times their standard error, but for the skew of the bootstrap."""
    study = with_three_groups(Truth(subjects=3, num_items=30, seeds=(0,)))
    view = StudyView(study, recommend(study))
    changes = subject_changes(study, view.advice("med"))
    label = view.focus("med").label
    quantile = stats.t.ppf(1 - 0.025 / 3, 11)
    for subject, (value, mean) in enumerate([(1, 10 / 12), (0, 0), (-1, -10 / 12)]):
        change = changes[label, "med", f"subject {subject}"]
        squares = 1 if value else 2 / 12
        half = quantile * ((squares - mean**2) / 11) ** 0.5
        assert change.value == value
        assert change.low == pytest.approx(max(-1, mean - half), abs=0.05)
        assert change.high == pytest.approx(min(1, mean + half), abs=0.05)
    figure = draw_subjects(view, "med")
    best, worse = (with_interval(changes[label, "med", f"subject {i}"], POINTS) for i in (0, 2))
    nothing = "no group is shown to differ from the base; 3 groups looked at"
    assert figure.finding == (
        f"{label}. On med: best on subject 0 ({best} points), worse on subject 2 ({worse} points); "
        f"3 groups looked at: 1 better, 1 worse. On math: {nothing}. On general: {nothing}."
    )


def test_tasks_without_groups_are_left_out_and_so_are_arms_beyond_a_limit() -> None:
    assert changes_of(replace(TRUTH, subjects=1)) == {}
    assert changes_of(replace(TRUTH, subjects=31)) == {}  # of 60 items
    ranks = tuple(range(1, MOST_ARMS + 6))
    large = changes_of(Truth(subjects=5, num_items=10, ranks=ranks, seeds=(0,)))
    assert len({label for label, _, _ in large}) == MOST_ARMS


def test_map_and_table_show_every_change() -> None:
    study, advice = study_and_advice(replace(TRUTH, retention=("general",)))
    view = StudyView(study, advice)
    figure = draw_subjects(view, "med")
    changes = subject_changes(study, advice.advice[0])
    assert [choice.label for choice in figure.choices] == ["med", "math", "general"]
    for drawn in figure.plot.data:
        means = [sum(row) / len(row) for row in drawn.z]  # the lowest on top
        assert means == pytest.approx(sorted(means))
    shown = {row[1:4]: row[4] for row in cells(figure)}
    assert shown == pytest.approx({key: 100 * change.value for key, change in changes.items()})
    table = study_tables(view)["subjects"].set_index(["arm", "tested_on", "subject"])
    assert set(table["trained_on"]) == {"med"}
    for name in ("low", "high"):
        ends = {key: getattr(change, name) for key, change in changes.items()}
        assert dict(table[f"change_{name}"]) == ends
