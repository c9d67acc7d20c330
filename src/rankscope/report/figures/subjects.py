"""Retention by subject: a map per retention task, arms side by side."""

from rankscope.formatting import count, difference
from rankscope.records import SubjectChange
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


@register("transfer", 20)
def draw_subjects(view: StudyView, task: str) -> Figure | None:
    """Subjects of the retention tasks of arms trained on ``task``; None if there are none."""
    changes = [c for c in view.recommendation.subjects if c.task == task]
    if not changes:
        return None
    rows = [
        {
            "arm": c.label,
            "retention task": c.tested_on,
            "subject": c.subject,
            **interval_cells(TITLE, c.change, view.unit(c.tested_on)),
            "p, Holm": c.change.p_holm,
            "items": c.change.n,
            "unit": view.unit(c.tested_on).difference,
        }
        for c in changes
    ]
    frame = table_from_rows(rows, {TITLE: 2, "p, Holm": 4})
    arms = list(dict.fromkeys(frame["arm"]))
    grids = {}
    of_focus = _of_focus(view, changes)
    worst = min(of_focus, key=lambda c: (c.change.n < MIN_ITEMS, c.change.value))
    # The drop-down opens on the task that the sentence names.
    for test in dict.fromkeys([worst.tested_on, *frame["retention task"]]):
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


def _of_focus(view: StudyView, changes: list[SubjectChange]) -> list[SubjectChange]:
    focus, labels = view.focus(changes[0].task), {c.label for c in changes}
    label = focus.label if focus and focus.label in labels else changes[0].label
    return [c for c in changes if c.label == label]


def _finding(view: StudyView, worst: SubjectChange, of_arm: list[SubjectChange]) -> str:
    fall = difference(worst.change.value, view.unit(worst.tested_on))
    items, fell = count(worst.change.n, "item"), sum(c.change.is_below(0) for c in of_arm)
    return (
        f"{worst.label}: the lowest change is {fall} on {worst.subject} ({worst.tested_on}, "
        f"{items}); {fell} of {count(len(of_arm), 'subject')} fell with an interval below zero."
    )
