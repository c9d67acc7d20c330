"""Cost against rank: trainable parameters, training time, peak memory."""

from rankscope.formatting import duration, number
from rankscope.report.charts.figure import Figure, range_cells
from rankscope.report.charts.rank_lines import Panel, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

PARAMETERS = "trainable parameters"
SECONDS = "training time of one trial, s"
MEMORY = "peak memory of its group, GiB"


@register("training", 20)
def draw_cost(view: StudyView, task: str) -> Figure:
    rank_axis = view.rank_axis(task)
    rows = []
    for arm in view.arms(task):
        records = [trial.train for trial in view.trials(arm) if trial.train]
        row = {"arm": arm.label, PARAMETERS: arm.trainable_parameters}
        row |= range_cells(SECONDS, [train.seconds for train in records])
        rows.append(row | range_cells(MEMORY, [r.peak_memory_bytes / 2**30 for r in records]))
    frame = table_from_rows(rows)
    panels = [
        Panel(title, frame, title, log=title == PARAMETERS, from_zero=title != PARAMETERS)
        for title in (PARAMETERS, SECONDS, MEMORY)
    ]
    return Figure(
        key=view.key("cost", task),
        title=f"Cost {rank_axis.against}, {task}",
        finding=_finding(view, task),
        data=frame,
        plot=rank_plot(rank_axis, panels) if rows else None,
        caption=f"{rank_axis.bands_note('the range over seeds')} The time of a trial is its share "
        "of the time of its group, by tokens. Memory is that of the whole process: the trials of a "
        "group share it.",
    )


def _finding(view: StudyView, task: str) -> str:
    arm, full = view.focus(task), view.best_full(task)
    if arm is None:
        return "No arm has finished, so there is no cost to show."
    text = f"{arm.label} trains {number(arm.trainable_parameters)} parameters"
    if arm.seconds is not None:
        text += f" in {duration(arm.seconds)} per trial"
    if full and full is not arm and full.trainable_parameters:
        share = number(100 * arm.trainable_parameters / full.trainable_parameters)
        text += f", {share} % of full fine-tuning's {number(full.trainable_parameters)}"
        if full.seconds is not None:
            text += f", which takes {duration(full.seconds)}"
    return text + "."
