"""Retention subject by subject: one map per retention task, arms side by side."""

from typing import Any

import plotly.graph_objects as go

from rankscope.formatting import Unit, count, difference, signed
from rankscope.records import SubjectChange
from rankscope.report.charts.figure import Choice, Column, Figure, axis, layout, name, table
from rankscope.report.study_view import StudyView
from rankscope.report.style import BETTER, NEUTRAL, WORSE

MAX_SUBJECTS = 60
"""Subjects drawn, those that fell most; all of them are in the table."""
ROW = 24
"""Height of a subject's row, pixels."""


def draw(view: StudyView, task: str) -> Figure | None:
    """Subjects of the retention tasks of arms trained on ``task``; None where there are none."""
    found = [c for c in view.recommendation.subjects if c.task == task]
    if not found:
        return None
    tests = list(dict.fromkeys(c.tested_on for c in found))
    arms = list(dict.fromkeys(c.label for c in found))
    columns = [Column("arm"), Column("retention task"), Column("subject")]
    columns += [Column("change against base", 2), Column("low", 2), Column("high", 2)]
    columns += [Column("p, Holm", 4), Column("items", 0), Column("unit")]
    return Figure(
        key=f"subjects-{view.training_tasks.index(task)}",
        title=f"Retention by subject, trained on {task}",
        finding=finding(view, found),
        table=table(columns, [row(c, view.unit(c.tested_on)) for c in found]),
        plot=plot(view, found, tests, arms),
        how_to_read="Tuned minus base on the test items of each subject; orange was forgotten. "
        "In brackets where the 95 % interval includes zero or is unknown: few items a subject make "
        "wide intervals. Each arm at the learning rate chosen for it; subjects by the mean over "
        "arms, what fell most on top.",
        choices=tuple(Choice(test, (place,)) for place, test in enumerate(tests)),
        choice_name="Retention task",
        min_width=190 + 68 * len(arms),
    )


def row(found: SubjectChange, unit: Unit) -> tuple[str | float | int | None, ...]:
    """One cell of the map with its interval."""
    e = found.change
    low, high = (None if end is None else end * unit.scale for end in (e.low, e.high))
    return (
        *(found.label, found.tested_on, found.subject),
        *(e.value * unit.scale, low, high, e.p_holm, e.n, unit.difference),
    )


def finding(view: StudyView, found: list[SubjectChange]) -> str:
    """Where the arm that the answer speaks of fell most, and how many falls are clear."""
    focus = view.focus(found[0].task)
    label = focus.label if focus and any(c.label == focus.label for c in found) else found[0].label
    own = [c for c in found if c.label == label]
    worst = min(own, key=lambda c: c.change.value)
    best = max(own, key=lambda c: c.change.value)
    fell = sum(c.change.high is not None and c.change.high < 0 for c in own)
    said = [
        f"{difference(c.change.value, view.unit(c.tested_on))} on {c.subject} ({c.tested_on})"
        for c in (worst, best)
    ]
    return (
        f"{label}: lowest {said[0]}, highest {said[1]}; {fell} of {count(len(own), 'subject')} "
        "fell with an interval below zero."
    )


def plot(
    view: StudyView, found: list[SubjectChange], tests: list[str], arms: list[str]
) -> go.Figure:
    """A heat map per retention task."""
    maps = [by_subject([c for c in found if c.tested_on == test]) for test in tests]
    tallest = max(len(rows) for rows in maps)
    figure = go.Figure(
        layout=layout(150 + ROW * tallest, margin={"l": 56, "r": 20, "t": 16, "b": 72})
    )
    for place, (test, rows) in enumerate(zip(tests, maps, strict=True)):
        unit = view.unit(test)
        cells = [[row_.get(arm) for arm in arms] for row_ in rows.values()]
        known = [abs(c.change.value) * unit.scale for line in cells for c in line if c]
        reach = max([*known, 1.0 if unit.scale == 100 else 0.01])
        figure.add_heatmap(
            x=[name(arm) for arm in arms],
            y=[name(subject) for subject in rows],
            z=[[c.change.value * unit.scale if c else None for c in line] for line in cells],
            text=[[text_of(c, unit) if c else "" for c in line] for line in cells],
            hovertext=[[hover(c, unit) if c else "not scored" for c in line] for line in cells],
            hoverinfo="text",
            texttemplate="%{text}",
            textfont={"size": 12},
            colorscale=[[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]],
            zmin=-reach,
            zmax=reach,
            xgap=2,
            ygap=2,
            showscale=False,
            visible=place == 0,
        )
    shared: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
    figure.update_xaxes(axis("arm", **shared))
    figure.update_yaxes(axis("", **shared, autorange="reversed"))
    return figure


def by_subject(found: list[SubjectChange]) -> dict[str, dict[str, SubjectChange]]:
    """Subject -> arm -> its change; what fell most on the mean over arms first."""
    rows: dict[str, dict[str, SubjectChange]] = {}
    for change in found:
        rows.setdefault(change.subject, {})[change.label] = change

    def mean(row_: dict[str, SubjectChange]) -> float:
        return sum(c.change.value for c in row_.values()) / len(row_)

    ordered = sorted(rows, key=lambda subject: mean(rows[subject]))
    return {subject: rows[subject] for subject in ordered[:MAX_SUBJECTS]}


def text_of(found: SubjectChange, unit: Unit) -> str:
    """The change, in brackets where zero is not ruled out."""
    text, e = signed(found.change.value, unit), found.change
    clear = e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
    return text if clear else f"({text})"


def hover(found: SubjectChange, unit: Unit) -> str:
    """Arm, subject, change, interval and items."""
    e = found.change
    ends = "interval unknown"
    if e.low is not None and e.high is not None:
        ends = f"{signed(e.low, unit)} to {signed(e.high, unit)}"
    return (
        f"<b>{name(found.label)}</b><br>{name(found.subject)}: {difference(e.value, unit)} "
        f"({ends}), {count(e.n, 'item')}"
    )
