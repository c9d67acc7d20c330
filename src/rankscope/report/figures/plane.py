"""Learning and forgetting, one point per arm: the plane of Biderman et al. (arXiv 2405.09673)."""

import pandas as pd
import plotly.graph_objects as go

from rankscope.formatting import count, difference
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure, interval_columns, interval_digits, layout, tidy
from rankscope.report.charts.labels import PointLabel
from rankscope.report.charts.scatter import (
    Path,
    add_base,
    add_broad_line,
    add_crosses,
    add_names,
    add_path,
    add_ring,
    plane_layout,
)
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView, forgetting_text
from rankscope.report.style import FULL, MUTED

MAX_CROSSES = 60
"""With more arms than this, only those on the front have crosses."""
CAPTION = """Each point is one arm, the mean over its seeds. Right is learned more, up is forgot \
less, so the good corner is top right. Crosses are 95 % intervals. Lines join the ranks of one \
learning rate. The broad grey line is the Pareto front: no other arm learned more and forgot \
less. The ring marks the recommended arm."""


@register("planes", 10)
def draw(view: StudyView, task: str) -> Figure:
    """The plane of one training task."""
    unit, lost = view.unit(task), view.forgetting_unit(task)
    gain, forgetting = f"gain over base, {unit.difference}", f"forgetting, {lost.difference}"
    arms = view.arms(task)
    front = [arm.label for arm in pareto_front(arms)]
    frame = tidy(
        {
            "arm": [arm.label for arm in arms],
            "seeds": [arm.seeds for arm in arms],
            **interval_columns(gain, [arm.gain for arm in arms], unit),
            **interval_columns(forgetting, [arm.forgetting for arm in arms], lost),
            "on the front": ["yes" if arm.label in front else "no" for arm in arms],
            "on the front with parameters counted": [
                "yes" if arm.on_pareto_front else "no" for arm in arms
            ],
        },
        interval_digits(gain, unit.digits + 1) | interval_digits(forgetting, lost.digits + 1),
    )
    placed = frame[frame[gain].notna() & frame[forgetting].notna()].set_index("arm", drop=False)
    return Figure(
        key=view.key("plane", task),
        title=f"Learning and forgetting, {task}",
        finding=finding(view, task, front),
        data=frame,
        plot=plot(view, task, placed, (gain, forgetting), front) if len(placed) else None,
        caption=CAPTION,
    )


def pareto_front(arms: tuple[ArmSummary, ...]) -> list[ArmSummary]:
    """Arms that no other arm beats in gain and forgetting together, by rising gain.

    ``ArmSummary.on_pareto_front`` counts parameters too; a plane shows two quantities only.
    """
    points = [(a.gain.value, a.forgetting.value, a) for a in arms if a.gain and a.forgetting]
    front: list[ArmSummary] = []
    least = float("inf")
    for _, forgotten, arm in sorted(points, key=lambda point: (-point[0], point[1])):
        if forgotten < least:
            least = forgotten
            front.append(arm)
    return front[::-1]


def finding(view: StudyView, task: str, front: list[str]) -> str:
    """The arm that learned most, the one that forgot least, and the size of the front."""
    points = [
        (a.gain.value, a.forgetting.value, a) for a in view.arms(task) if a.gain and a.forgetting
    ]
    if not points:
        if not view.retention_tasks:
            return "The study has no retention task, so forgetting is unknown."
        return "No arm has both a gain and a forgetting score yet."
    unit, lost = view.unit(task), view.forgetting_unit(task)
    gain, forgotten, most = max(points, key=lambda point: point[0])
    _, least_forgotten, least = min(points, key=lambda point: point[1])
    return (
        f"The largest gain is {difference(gain, unit)} ({most.label}), with "
        f"{forgetting_text(forgotten, lost)}; {least.label} forgot least "
        f"({forgetting_text(least_forgotten, lost)}). {count(len(front), 'arm')} of {len(points)} "
        f"{'is' if len(front) == 1 else 'are'} on the Pareto front."
    )


def plot(
    view: StudyView, task: str, placed: pd.DataFrame, axes: tuple[str, str], front: list[str]
) -> go.Figure:
    """Front, crosses, one path per line over rank, full fine-tuning, base, ring and names."""
    x, y = axes
    words = {"gain": x, "forgetting": y}
    figure = go.Figure(layout=layout(400))
    arms = {arm.label: arm for arm in view.arms(task) if arm.label in placed.index}
    add_broad_line(figure, placed.loc[front], x, y)
    crossed = [arms[label] for label in (front if len(arms) > MAX_CROSSES else arms)]
    for color in dict.fromkeys(view.color(arm).light for arm in crossed):
        labels = [arm.label for arm in crossed if view.color(arm).light == color]
        add_crosses(figure, placed.loc[labels], x, y, color)
    for label, on_line in view.lines(task).items():
        drawn = [arm for arm in on_line if arm.label in arms]
        dash, symbol = view.line_style(label)
        colors = tuple(view.color(arm).light for arm in drawn)
        points = placed.loc[[arm.label for arm in drawn]]
        if drawn:
            add_path(figure, Path(points, colors, symbol, dash, MUTED.light, words=words), x, y)
    full = sorted((arm for arm in arms.values() if arm.is_full), key=lambda arm: arm.lr)
    if full:
        points = placed.loc[[arm.label for arm in full]]
        add_path(figure, Path(points, (FULL.light,), "square", words=words), x, y)
    add_base(figure, "untuned: the origin")
    chosen = view.chosen(task)
    first = [chosen.label] if chosen and chosen.label in arms else []
    if first:
        add_ring(figure, placed.loc[first[0], x], placed.loc[first[0], y])
    named = dict.fromkeys([*first, *(arm.label for arm in full), *front])
    labels = [PointLabel(*placed.loc[label, [x, y]], arms[label].short_label) for label in named]
    labels.insert(1, PointLabel(0.0, 0.0, "base"))
    points = [(0.0, 0.0), *zip(placed[x], placed[y], strict=True)]
    reach = [
        (row[f"{x}, {end}"], row[f"{y}, {end}"])
        for row in placed.to_dict("records")
        for end in ("low", "high")
        if row[f"{x}, {end}"] is not None and row[f"{y}, {end}"] is not None
    ]
    add_names(figure, labels, points, True, reach)
    plane_layout(figure, x, f"{y} (up: less)", True)
    return figure
