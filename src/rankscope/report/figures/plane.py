"""Learning and retention, one point per arm: the plane of Biderman et al. (arXiv 2405.09673)."""

from rankscope.formatting import count, difference
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.scatter import Path, plane_plot
from rankscope.report.columns import interval_cells
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView, retention_text
from rankscope.report.style import FULL_COLOR, MUTED
from rankscope.report.table_formats import shown, table

MAX_CROSSES = 60  # With more arms than this, only those on the front have crosses
_CAPTION = """Each point is one configuration, the mean over its seeds. Right is learned more, up \
is retained more, so the good corner is top right. Crosses are 95 % intervals. Lines join the \
ranks of one learning rate. The broad gray line is the Pareto front: no other configuration \
learned more and retained more. The ring marks the recommendation. The table also has all costs."""


@in_section("planes", 10)
def draw_plane(view: StudyView, task: str) -> Figure:
    kept, front = view.retention_unit(task), view.front(task)
    axes = view.plane_titles(task, kept)
    rows = [
        {
            "arm": arm.label,
            "seeds": arm.seeds,
            **interval_cells(axes[0], arm.gain),
            **interval_cells(axes[1], view.retention_change(arm)),
            "on the front": "yes" if arm.label in front else "no",
            "on the front with parameters counted": "yes" if arm.on_pareto_front else "no",
            "trainable parameters": arm.trainable_parameters,
            "training time of one run, s": arm.seconds,
            "peak memory of its group, GiB": arm.peak_memory_bytes
            and arm.peak_memory_bytes / 2**30,
        }
        for arm in view.arms(task)
    ]
    frame = shown(table(rows, view.plane_columns(task, kept)))
    key, title = view.key("plane", task), f"Learning and retention, {task}"
    if not front:
        return Figure(key, title, "No configuration has both a gain and a retention score.", frame)
    placed = frame[frame[axes[0]].notna() & frame[axes[1]].notna()].set_index("arm", drop=False)
    arms = {arm.label: arm for arm in view.arms(task) if arm.label in placed.index}
    lines = [(line, MUTED) for line in view.lines(task).values()] + [(view.full(task), FULL_COLOR)]
    paths = []
    for line, color in lines:
        if drawn := [arm for arm in line if arm.label in arms]:
            colors = [view.color(arm).light for arm in drawn]
            words = dict(zip(("gain", "retention"), axes, strict=True))
            points = placed.loc[[arm.label for arm in drawn]]
            paths.append(Path(points, words, colors, view.arm_style(drawn[0]), color.light))
    chosen, names = view.advice(task).chosen, view.point_names(task)
    ring = chosen.label if chosen and chosen.label in arms else None
    full = [arm.label for arm in view.full(task) if arm.label in arms]
    crossed = front if len(arms) > MAX_CROSSES else arms
    plot = plane_plot(
        placed,
        axes,
        paths,
        crosses={label: view.color(arms[label]).light for label in crossed},
        front=front,
        ring=ring,
        names={n: names[n] for n in dict.fromkeys([ring or front[-1], *full, *front, *arms])},
    )
    return Figure(key, title, _finding(view, task), frame, plot, _CAPTION)


def _finding(view: StudyView, task: str) -> str:
    scored = [
        (a, a.gain.value, change.value)
        for a in view.arms(task)
        if a.gain and (change := view.retention_change(a))
    ]
    unit, lost, front = view.unit(task), view.retention_unit(task), view.front(task)
    most, gain, kept = max(scored, key=lambda arm: (arm[1], arm[2]))
    least, _, best = max(scored, key=lambda arm: (arm[2], arm[1]))
    highest = "The largest gain is" if gain > 0 else "Nothing gained; the highest change is"
    return (
        f"{highest} {difference(gain, unit)} ({most.label}), with "
        f"{retention_text(kept, lost)}; the highest change of retention is "
        f"{difference(best, lost)} ({least.label}). {count(len(front), 'configuration')} of "
        f"{len(scored)} {'is' if len(front) == 1 else 'are'} on the Pareto front."
    )
