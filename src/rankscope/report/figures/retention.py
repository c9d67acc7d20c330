"""Change on each retention task against rank."""

from rankscope.formatting import difference, join_names
from rankscope.report.charts.figure import Figure, interval_cells, interval_digits
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

MAX_PANELS = 6
CHANGE = "change against base"


@register("ranks", 20)
def draw_retention(view: StudyView, task: str) -> Figure:
    """A panel per retention task, with full fine-tuning and no change as references."""
    names, rank_axis = view.retained(task), view.rank_axis(task)
    rows = [
        {
            "arm": arm.label,
            "retention task": name,
            **interval_cells(CHANGE, arm.retention[name], view.unit(name)),
        }
        for arm in view.arms(task)
        for name in names
        if name in arm.retention
    ]
    frame = table_from_rows(rows, interval_digits(CHANGE, 3))
    panels = [
        Panel(
            f"{name}, change in {view.unit(name).difference}",
            frame[frame["retention task"] == name],
            CHANGE,
            [Reference("base", 0.0)],
        )
        for name in names[:MAX_PANELS]
        if rows
    ]
    return Figure(
        key=view.key("retention", task),
        title=f"Retention {rank_axis.against}, trained on {task}",
        finding=_finding(view, task, names),
        data=frame,
        plot=rank_plot(rank_axis, panels) if panels else None,
        caption="Tuned minus base on the test split: below zero is forgotten. "
        + rank_axis.bands_note(),
    )


def _finding(view: StudyView, task: str, names: list[str]) -> str:
    if not names:
        return "The study has no retention task, so forgetting cannot be drawn."
    changes = [
        (change.value, f"{difference(change.value, view.unit(name))} on {name} ({arm.label})")
        for arm in view.arms(task)
        for name, change in arm.retention.items()
        if name in names
    ]
    if not changes:
        return "No arm has been scored on a retention task yet."
    (worst, worst_text), (_, best_text) = min(changes), max(changes)
    text = f"The largest fall is {worst_text}" if worst < 0 else "No arm fell on a retention task"
    text += f"; the best change is {best_text}."
    if len(names) > MAX_PANELS:
        text += f" Drawn: {join_names(names[:MAX_PANELS])}; the others are in the table."
    return text
