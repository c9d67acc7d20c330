"""Learning and forgetting, one point per arm: the plane of Biderman et al. (arXiv 2405.09673)."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from rankscope.formatting import count, difference
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure, interval_cells, interval_digits
from rankscope.report.charts.scatter import Path, plane_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView, forgetting_text
from rankscope.report.style import FULL_COLOR, MUTED
from rankscope.report.table_formats import table_from_rows

MAX_CROSSES = 60
"""With more arms than this, only those on the front have crosses."""
_CAPTION = """Each point is one arm, the mean over its seeds. Right is learned more, up is forgot \
less, so the good corner is top right. Crosses are 95 % intervals. Lines join the ranks of one \
learning rate. The broad grey line is the Pareto front: no other arm learned more and forgot \
less. The ring marks the recommended arm."""


@register("planes", 10)
def draw_plane(view: StudyView, task: str) -> Figure:
    unit, lost = view.unit(task), view.forgetting_unit(task)
    gain, forgetting = view.plane_titles(task)
    front = [arm.label for arm in plane_front(view.arms(task))]
    rows = [
        {
            "arm": arm.label,
            "seeds": arm.seeds,
            **interval_cells(gain, arm.gain, unit),
            **interval_cells(forgetting, arm.forgetting, lost),
            "on the front": "yes" if arm.label in front else "no",
            "on the front with parameters counted": "yes" if arm.on_pareto_front else "no",
        }
        for arm in view.arms(task)
    ]
    digits = interval_digits(gain, unit.digits + 1) | interval_digits(forgetting, lost.digits + 1)
    frame = table_from_rows(rows, digits)
    plot = None
    if front:
        placed = frame[frame[gain].notna() & frame[forgetting].notna()]
        plot = plot_plane(view, task, placed.set_index("arm", drop=False), front)
    key, title = view.key("plane", task), f"Learning and forgetting, {task}"
    return Figure(key, title, _finding(view, task, front), frame, plot, _CAPTION)


def plane_front(arms: Sequence[ArmSummary]) -> list[ArmSummary]:
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


def _finding(view: StudyView, task: str, front: list[str]) -> str:
    arms = view.arms(task)
    points = [(a.gain.value, a.forgetting.value, a) for a in arms if a.gain and a.forgetting]
    if not points and not view.retention_tasks:
        return "The study has no retention task, so forgetting is unknown."
    if not points:
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


def plot_plane(view: StudyView, task: str, placed: pd.DataFrame, front: list[str]) -> go.Figure:
    """One path per line over rank and one for full fine-tuning."""
    axes = view.plane_titles(task)
    arms = {arm.label: arm for arm in view.arms(task) if arm.label in placed.index}
    full = sorted((arm for arm in arms.values() if arm.is_full), key=lambda arm: arm.lr)
    lines = [(line, MUTED.light) for line in view.lines(task).values()]
    paths = []
    for line, color in (*lines, (full, FULL_COLOR.light)):
        if drawn := [arm for arm in line if arm.label in arms]:
            colors = [view.color(arm).light for arm in drawn]
            words = {"gain": axes[0], "forgetting": axes[1]}
            points = placed.loc[[arm.label for arm in drawn]]
            paths.append(Path(points, words, colors, view.arm_style(drawn[0]), color))
    chosen = view.chosen(task)
    ring = chosen.label if chosen and chosen.label in arms else None
    named = dict.fromkeys([*([ring] if ring else []), *(arm.label for arm in full), *front])
    crossed = front if len(arms) > MAX_CROSSES else arms
    return plane_plot(
        placed,
        axes,
        paths,
        crosses={label: view.color(arms[label]).light for label in crossed},
        front=front,
        ring=ring,
        names={label: arms[label].short_label for label in named},
    )
