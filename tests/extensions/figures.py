"""A figure from one file: how many items each task was tested on."""

import plotly.graph_objects as go

from rankscope.records import BASE
from rankscope.report.charts.figure import Figure, axis, layout, plot_text
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table


@in_section("training", 30)
def draw(view: StudyView, task: str) -> Figure:
    """One bar per task that the arms trained on ``task`` were tested on."""
    evals = view.study.evals
    rows = [
        {"task": t.name, "items": evals[BASE, t.name, "test"].n}
        for t in view.study.tasks
        if (BASE, t.name, "test") in evals
    ]
    plot = go.Figure(layout=layout(240))
    plot.add_bar(x=[plot_text(row["task"]) for row in rows], y=[row["items"] for row in rows])
    plot.update_yaxes(axis("items"))
    return Figure(
        key=view.key("items", task),
        title=f"Tested items, {task}",
        finding=f"{sum(row['items'] for row in rows)} items in {len(rows)} tasks.",
        data=table(rows),
        plot=plot,
        caption="Test split.",
    )
