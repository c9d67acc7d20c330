"""Train x test map: what training on one task did to every other."""

from rankscope.formatting import Unit, count, difference
from rankscope.records import ArmSummary, Estimate, trained_parts
from rankscope.report.charts.figure import Figure, interval_columns, interval_digits, tidy
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView, change_on

MAX_CHOICES = 60
BEST = "best arm of each task"


@register("transfer", 10, per="unit")
def draw(view: StudyView, unit: Unit) -> Figure | None:
    """The map over the tasks measured in ``unit``; the drop-down selects an arm."""
    trains = view.training_tasks
    if not trains:
        return None
    tests = [task.name for task in view.study.tasks if view.unit(task.name) == unit]
    cells = [
        (train, arm, test, change)
        for train in trains
        for arm in view.arms(train)
        for test in tests
        if (change := change_on(arm, test))
    ]
    title = f"change, {unit.difference}"
    frame = tidy(
        {
            "trained on": [train for train, *_ in cells],
            "arm": [arm.label for _, arm, *_ in cells],
            "tested on": [test for *_, test, _ in cells],
            **interval_columns(title, [change for *_, change in cells], unit),
        },
        interval_digits(title, unit.digits + 1),
    )
    best = {task: arm.label for task in trains if (arm := view.focus(task))}
    ordered = sorted({(arm.is_full, arm.lr, arm.rank or 0, arm.label) for _, arm, *_ in cells})
    entries = {BEST: [best.get(train) for train in frame["trained on"]]}
    entries |= {label: [label] * len(frame) for *_, label in ordered[:MAX_CHOICES]}
    grids = {}
    for entry, shown in entries.items():
        layer = frame[frame["arm"] == shown]
        if len(layer):
            grids[entry] = change_grid(
                layer, ("trained on", "tested on"), title, unit,
                (trains, tests), absent=lambda train, test: absent(view, train, test),
                reach=frame[title].abs().max(),
                framed=tuple((trains.index(t), tests.index(t)) for t in trains if t in tests),
            )  # fmt: skip
    plot, choices = heat_map(
        grids, row_height=52, x_title="tested on", y_title="trained on", margin={"b": 72}
    ) if grids else (None, ())  # fmt: skip
    return Figure(
        key=f"transfer-{unit.score.split()[0].strip('%') or 'accuracy'}",
        title=f"Train x test map, change against the base in {unit.difference}",
        finding=finding(view, tests, unit),
        data=frame,
        plot=plot,
        caption="Rows are training tasks, columns tested tasks. Blue is better than the base, "
        "orange worse. Brackets: the 95 % interval includes zero or is unknown.",
        choices=choices,
        min_width=150 + 56 * len(tests),
    )


def absent(view: StudyView, train: str, test: str) -> str:
    """Why a cell is empty."""
    shares = train != test and test in trained_parts(view.study, train)
    return "shares its training rows" if shares else "not scored"


def finding(view: StudyView, tests: list[str], unit: Unit) -> str:
    """The largest fall and rise elsewhere for the focus arms."""
    changes: list[tuple[Estimate, str, ArmSummary]] = [
        (change, test, arm)
        for train in view.training_tasks
        if (arm := view.focus(train))
        for test in tests
        if test != train and (change := change_on(arm, test))
    ]
    if not changes:
        return "No trained arm has been scored on another task, so transfer is unknown."
    low, high = (pick(changes, key=lambda c: c[0].value) for pick in (min, max))
    text = "With the best arm of each task, nothing else fell"
    if low[0].value < 0:
        text = (
            f"With the best arm of each task, the largest fall elsewhere is "
            f"{difference(low[0].value, unit)} on {low[1]} after training on {low[2].task}"
        )
    if high[0].value > 0:
        text += f"; the largest rise is {difference(high[0].value, unit)} on {high[1]} after "
        text += f"training on {high[2].task}"
    clear = sum(excludes_zero(change) for change, *_ in changes)
    return (
        f"{text}. {count(clear, 'change')} of {len(changes)} on other tasks "
        f"{'has' if clear == 1 else 'have'} an interval that excludes zero."
    )


def excludes_zero(estimate: Estimate) -> bool:
    """Whether the interval is known and excludes zero."""
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and (low > 0 or high < 0)
