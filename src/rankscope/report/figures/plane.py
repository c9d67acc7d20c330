"""Learning and forgetting, one point per arm: the plane of Biderman et al. (arXiv 2405.09673)."""

import pandas as pd
import plotly.graph_objects as go

from rankscope.formatting import count, difference
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure, interval_columns, interval_digits, tidy
from rankscope.report.charts.scatter import Path, plane_plot
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
    """One path per line over rank and one for full fine-tuning, the front, the ring and names."""
    arms = {arm.label: arm for arm in view.arms(task) if arm.label in placed.index}
    full = sorted((arm for arm in arms.values() if arm.is_full), key=lambda arm: arm.lr)
    lines = [
        ([arm for arm in on_line if arm.label in arms], *view.line_style(label), MUTED.light)
        for label, on_line in view.lines(task).items()
    ]
    words = dict(zip(("gain", "forgetting"), axes, strict=True))
    paths = [
        Path(
            placed.loc[[arm.label for arm in drawn]],
            tuple(view.color(arm).light for arm in drawn),
            symbol,
            dash,
            color,
            words=words,
        )
        for drawn, dash, symbol, color in (*lines, (full, "solid", "square", FULL.light))
        if drawn
    ]
    chosen = view.chosen(task)
    ring = chosen.label if chosen and chosen.label in arms else None
    named = dict.fromkeys([*([ring] if ring else []), *(arm.label for arm in full), *front])
    return plane_plot(
        placed,
        axes,
        paths,
        crosses={
            label: view.color(arms[label]).light
            for label in (front if len(arms) > MAX_CROSSES else arms)
        },
        front=front,
        ring=ring,
        names={label: arms[label].short_label for label in named},
    )
