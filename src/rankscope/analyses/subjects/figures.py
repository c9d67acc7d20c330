"""Retention by subject: a map per retention task, arms side by side."""

from collections.abc import Sequence

import numpy as np

from rankscope.advise.arms import adjusted_within_family, trials_by_arm
from rankscope.advise.retention import retained_tasks
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import align_scores, stored_scores
from rankscope.formatting import count, difference
from rankscope.records import (
    BASE,
    Estimate,
    ItemScores,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
    finished_trials,
)
from rankscope.report.charts.figure import Figure, interval_cells
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

MIN_ITEMS = 5  # Of a subject that the sentence names
MAX_SUBJECTS = 60  # Subjects drawn, those that fell most; all of them are in the table
TITLE = "change against base"
_CAPTION = """Tuned minus base on the test items of each subject; orange was forgotten. Brackets: \
the 95 % interval includes zero or is unknown; with few items per subject, intervals are wide, and \
the sentence above names no subject with fewer than {} items unless all have so few. Each arm has \
the learning rate chosen for it. Subjects are ordered by the mean over arms, largest fall on top."""
MOST_ARMS = 16  # Largest number of arms per training task, to keep the figure readable

SubjectChanges = dict[tuple[str, str, str], Estimate]
"""By arm, retention task and subject: the change on the subject's test items. ``p_holm`` is within
the arm's subjects of all retention tasks."""


def subject_changes(study: StudyRecords, advice: TaskAdvice) -> SubjectChanges:
    """Changes of the arms that the advice names or compares, each at its chosen learning rate.

    Tasks with fewer than two subjects are skipped, and so are items without a subject.
    """
    labels = {advice.subject_label, advice.best_full_label, advice.best_lora_label}
    labels |= {label for c in advice.comparisons for label in (c.first_label, c.second_label)}
    changes = SubjectChanges()
    arms = [arm for arm in trials_by_arm(study.trials).values() if arm[0].spec.task == advice.task]
    for arm in [arm for arm in arms if arm[0].spec.arm_label in labels][:MOST_ARMS]:
        of_arm = _changes_of_arm(study, arm)
        changes |= zip(of_arm, adjusted_within_family(list(of_arm.values())), strict=True)
    return changes


def _changes_of_arm(study: StudyRecords, arm: Sequence[TrialRecords]) -> SubjectChanges:
    spec, changes = arm[0].spec, SubjectChanges()
    for task in retained_tasks(study.tasks, spec.task):
        base = study.items.get((BASE, task.name, "test"))
        base_parts = {} if base is None else _by_subject(base)
        if len(base_parts) < 2:
            continue
        tuned = stored_scores(study, finished_trials(arm), task.name, "test")
        tuned_parts = [_by_subject(scores) for scores in tuned]
        for subject, base_part in sorted(base_parts.items()):
            parts = [of_model[subject] for of_model in tuned_parts if subject in of_model]
            pair = align_scores(parts, [base_part], trained=False)
            if pair is not None and len(parts) == len(tuned_parts):
                changes[spec.arm_label, task.name, subject] = weighted_estimate([pair])
    return changes


def _by_subject(scores: ItemScores) -> dict[str, ItemScores]:
    """Subject -> the scores of its items, without subject labels."""
    places: dict[str, list[int]] = {}
    for place, subject in enumerate(scores.subjects):
        if subject is not None:
            places.setdefault(subject, []).append(place)
    return {
        subject: ItemScores(
            item_ids=tuple(scores.item_ids[i] for i in kept),
            scores=scores.scores[np.array(kept)],
            gold_logprobs=scores.gold_logprobs[np.array(kept)],
            subjects=(None,) * len(kept),
        )
        for subject, kept in places.items()
    }


@register("transfer", 20)
def draw_subjects(view: StudyView, task: str) -> Figure | None:
    """Subjects of the retention tasks of arms trained on ``task``; None if there are none."""
    return changes_figure(view, task, subject_changes(view.study, view.advice(task)))


def changes_figure(view: StudyView, task: str, changes: SubjectChanges) -> Figure | None:
    if not changes:
        return None
    rows = [
        {
            "arm": label,
            "retention task": tested_on,
            "subject": subject,
            **interval_cells(TITLE, change, view.unit(tested_on)),
            "p, Holm": change.p_holm,
            "items": change.n,
            "unit": view.unit(tested_on).difference,
        }
        for (label, tested_on, subject), change in changes.items()
    ]
    frame = table_from_rows(rows, {TITLE: 2, "p, Holm": 4})
    arms = list(dict.fromkeys(frame["arm"]))
    grids = {}
    focus = view.focus(task)
    label = focus.label if focus and focus.label in arms else arms[0]
    of_focus = {key: change for key, change in changes.items() if key[0] == label}
    worst = min(of_focus, key=lambda k: (of_focus[k].n < MIN_ITEMS, of_focus[k].value))
    # The drop-down opens on the task that the sentence names.
    for test in dict.fromkeys([worst[1], *frame["retention task"]]):
        layer = frame[frame["retention task"] == test]
        means = layer.groupby("subject", sort=False)[TITLE].mean().sort_values(kind="stable")
        order = list(means.index[:MAX_SUBJECTS]), arms
        layer = layer[layer["subject"].isin(order[0])]
        grids[test] = change_grid(layer, ("subject", "arm"), TITLE, view.unit(test), order)
    return Figure(
        key=view.key("subjects", task),
        title=f"Retention by subject, trained on {task}",
        finding=_finding(view, worst, of_focus),
        data=frame,
        **heat_map(grids, x_title="arm"),
        caption=_CAPTION.format(MIN_ITEMS),
        choice_name="Retention task",
    )


def _finding(view: StudyView, worst: tuple[str, str, str], of_arm: SubjectChanges) -> str:
    (label, tested_on, subject), change = worst, of_arm[worst]
    fall, items = difference(change.value, view.unit(tested_on)), count(change.n, "item")
    fell = sum(change.is_below(0) for change in of_arm.values())
    return (
        f"{label}: the lowest change is {fall} on {subject} ({tested_on}, {items}); {fell} of "
        f"{count(len(of_arm), 'subject')} fell with an interval below zero."
    )
