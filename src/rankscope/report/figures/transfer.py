"""Train x test map: the effect of training on one task on every other task."""

from rankscope.formatting import NATS, Unit, difference
from rankscope.records import trained_parts
from rankscope.report.charts.figure import Drawn, Figure
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.columns import Column, interval_cells
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import shown, table

MAX_CHOICES = 60


@in_section("transfer", 10, per="unit")
def draw_transfer(view: StudyView, unit: Unit) -> Figure:
    """Draw the map over the tasks measured in ``unit``; the drop-down selects an arm."""
    trains = view.training_tasks
    tests = [task.name for task in view.study.tasks if view.unit(task.name) == unit]
    title = f"change, {unit.difference}"
    rows = [
        {
            "trained on": train,
            "arm": arm.label,
            "tested on": test,
            **interval_cells(title, change),
        }
        for train in trains
        for arm in view.arms(train)
        for test in tests
        if (change := change_on(arm, test))
    ]
    frame = shown(table(rows, {title: Column(unit=unit, digits=unit.digits + 1)}))
    arms = {a.label: (a.is_full, a.lr, a.rank or 0) for train in trains for a in view.arms(train)}
    labels = sorted(arms, key=arms.__getitem__)[:MAX_CHOICES]
    best = {train: arm.label for train in trains if (arm := view.focus(train))}
    entries = {"answer of each task": best} | {
        label: dict.fromkeys(trains, label) for label in labels
    }
    grids = {}
    for entry, of_task in entries.items():
        layer = frame[frame["arm"] == frame["trained on"].map(of_task)] if rows else frame
        if len(layer):
            grids[entry] = change_grid(
                layer,
                ("trained on", "tested on"),
                title,
                unit,
                (trains, tests),
                absent=lambda train, test: absent(view, train, test),
                reach=frame[title].abs().max(),
                framed=[(train, train) for train in trains if train in tests],
            )
    drawn = Drawn()
    if grids:
        drawn = heat_map(grids, row_height=52, x_title="tested on", y_title="trained on")
    return Figure(
        key=f"transfer-{'nats' if unit == NATS else 'accuracy'}",
        title=f"Train x test map, change against the base in {unit.difference}",
        finding=_finding(view, tests, unit),
        data=frame,
        caption="Rows are training tasks, columns tested tasks. Blue is better than the base, "
        "orange worse. Brackets: the 95 % interval includes zero or is unknown.",
        **drawn,
    )


def absent(view: StudyView, train: str, test: str) -> str:
    shares = train != test and test in trained_parts(view.study.tasks, train)
    return "shares its training rows" if shares else "not scored"


def _finding(view: StudyView, tests: list[str], unit: Unit) -> str:
    changes = [
        (change.value, f"{difference(change.value, unit)} on {test} after training on {train}")
        for train in view.training_tasks
        if (arm := view.focus(train))
        for test in tests
        if test != train and (change := change_on(arm, test))
    ]
    if not changes:
        return "No trained configuration has been scored on another task, so transfer is unknown."
    (fall, worst), (rise, best) = min(changes), max(changes)
    text = f"the largest fall elsewhere is {worst}" if fall < 0 else "nothing else fell"
    text += f"; the largest rise is {best}" if rise > 0 else ""
    return f"With the answer of each task, {text}."
