"""Changes by subject: a map per tested task, arms side by side, and a table.

The intervals of an arm on one tested task hold for all of its subjects at once (Bonferroni). So a
subject picked after looking at all of them is covered, too, however subjects depend on each other.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.statistics.estimates import simultaneous_estimates
from rankscope.advise.statistics.matching import align_scores, stored_scores
from rankscope.formatting import count, with_interval
from rankscope.records import (
    BASE,
    Estimate,
    ItemScores,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
    finished_trials,
    trained_parts,
)
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table
from rankscope.report.tables import ScoreTable, change_cells, columns_of

MAX_SUBJECTS = 60  # Subjects drawn, those with the lowest changes; all of them are in the table
MOST_ARMS = 16  # Largest number of arms per training task, to keep the figure readable
_CAPTION = """Tuned minus base on the test items of each group, a value of the column that the \
task names as its subject; blue is better, orange worse. Brackets: the interval includes zero or \
is unknown. The 95 % intervals of a configuration hold for all groups of the tested task at once, \
so they are wider than those of single comparisons. Each configuration has the learning rate \
chosen for it. Groups are ordered by their mean, lowest on top."""

SubjectChanges = dict[tuple[str, str, str], Estimate]
"""Change on a subject's test items, by (arm, tested task, subject). Intervals hold at once for the
arm's subjects of one task."""


def subject_changes(study: StudyRecords, advice: TaskAdvice) -> SubjectChanges:
    """Return the changes of arms that the advice names or compares, at their chosen learning rates.

    They are on the training task, then on every task that the arms were not trained on. Items
    without a subject are skipped. So are tasks with fewer than two subjects or fewer than two items
    a subject.
    """
    labels = {advice.subject_label, advice.best_full_label, advice.best_lora_label}
    labels |= {label for c in advice.comparisons for label in (c.first_label, c.second_label)}
    seen = trained_parts(study.tasks, advice.task)
    tested = [advice.task, *(task.name for task in study.tasks if task.name not in seen)]
    changes = SubjectChanges()
    arms = [arm for arm in trials_by_arm(study.trials).values() if arm[0].spec.task == advice.task]
    for arm in [arm for arm in arms if arm[0].spec.arm_label in labels][:MOST_ARMS]:
        for task in tested:
            for subject, change in _changes_on(study, arm, task).items():
                changes[arm[0].spec.arm_label, task, subject] = change
    return changes


def _changes_on(study: StudyRecords, arm: Sequence[TrialRecords], task: str) -> dict[str, Estimate]:
    base = study.items.get((BASE, task, "test"))
    base_parts = {} if base is None else _by_subject(base)
    if base is None or not 2 <= len(base_parts) <= len(base.scores) / 2:
        return {}
    tuned = stored_scores(study, finished_trials(arm), task, "test")
    tuned_parts = [_by_subject(scores) for scores in tuned]
    pairs = {}
    for subject, base_part in sorted(base_parts.items()):
        parts = [of_model[subject] for of_model in tuned_parts if subject in of_model]
        pair = align_scores(parts, [base_part], trained=False)
        if pair is not None and len(parts) == len(tuned_parts):
            pairs[subject] = pair
    return dict(zip(pairs, simultaneous_estimates(list(pairs.values())), strict=True))


def _by_subject(scores: ItemScores) -> dict[str, ItemScores]:
    """Group the scores of items by subject, without subject labels."""
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


def _table(view: StudyView, by_task: Mapping[str, SubjectChanges]) -> pd.DataFrame:
    """Return a row per training task, arm, tested task and subject."""
    rows = [
        {"trained_on": task, "arm": label, "tested_on": tested, "subject": subject}
        | change_cells(change, view.unit(tested))
        for task, changes in by_task.items()
        for (label, tested, subject), change in changes.items()
    ]
    return table(rows, columns_of(view, "change"))


@ScoreTable
def subjects(view: StudyView) -> pd.DataFrame:
    advice = view.recommendation.advice
    return _table(view, {a.task: subject_changes(view.study, a) for a in advice})


@in_section("transfer", 20)
def draw_subjects(view: StudyView, task: str) -> Figure | None:
    """Draw the subjects of tasks that arms trained on ``task`` were tested on; None without any."""
    return changes_figure(view, task, subject_changes(view.study, view.advice(task)))


def changes_figure(view: StudyView, task: str, changes: SubjectChanges) -> Figure | None:
    if not changes:
        return None
    frame = shown(_table(view, {task: changes}))
    arms = list(dict.fromkeys(frame["arm"]))
    grids = {}
    for test in dict.fromkeys(frame["tested on"]):
        layer = frame[frame["tested on"] == test]
        means = layer.groupby("subject", sort=False)["change"].mean().sort_values(kind="stable")
        order = list(means.index[:MAX_SUBJECTS]), arms
        layer = layer[layer["subject"].isin(order[0])]
        grids[test] = change_grid(layer, ("subject", "arm"), "change", view.unit(test), order)
    focus = view.focus(task)
    label = focus.label if focus and focus.label in arms else arms[0]
    return Figure(
        key=view.key("subjects", task),
        title=f"Change by group of items, trained on {task}",
        finding=_finding(view, label, changes),
        data=frame,
        **heat_map(grids, x_title="arm"),
        caption=_CAPTION,
        choice_name="Tested task",
    )


def _finding(view: StudyView, label: str, changes: SubjectChanges) -> str:
    """Name the arm's best and worst subject clear of zero, for every tested task."""
    texts = [label]
    for test in dict.fromkeys(tested for arm, tested, _ in changes if arm == label):
        of_test = {
            s: c for (arm, tested, s), c in changes.items() if (arm, tested) == (label, test)
        }
        clear = [s for s, change in of_test.items() if change.is_clear_of_zero]
        clear.sort(key=lambda subject: of_test[subject].value)
        worse = [subject for subject in clear if of_test[subject].value < 0]
        named = [("best", s) for s in clear[len(worse) :][-1:]] + [("worse", s) for s in worse[:1]]
        unit = view.unit(test)
        found = ", ".join(
            f"{word} on {s} ({with_interval(of_test[s], unit)} {unit.difference})"
            for word, s in named
        )
        found = found or "no group is shown to differ from the base"
        numbers = f": {len(clear) - len(worse)} better, {len(worse)} worse" if clear else ""
        texts.append(f"On {test}: {found}; {count(len(of_test), 'group')} looked at{numbers}")
    return ". ".join(texts) + "."
