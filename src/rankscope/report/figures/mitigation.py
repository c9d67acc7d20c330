"""Mitigations at an equal score: each beside its plain arm scaled down to the same score."""

from rankscope.formatting import amount, count
from rankscope.records import TaskMitigation
from rankscope.report.charts.figure import Figure, interval_cells
from rankscope.report.charts.interval_rows import interval_rows
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

LEVEL = 0.05
_CAPTION = """How much more each mitigation retains than the same arm without it, scaled down \
until both have the same in-domain score. Right of zero it retains more than scaling, which is \
free. Bars are 95 % intervals over seeds and items, each on its own; a hollow mark has none. If \
a mitigation learned more than the plain arm does at any scale, the plain arm is credited with \
the difference."""


@register("mitigation", 20)
def draw_mitigation(view: StudyView, task: str) -> Figure | None:
    """The comparisons of one training task; None if there are none."""
    mitigation = view.mitigation(task)
    if mitigation is None or not mitigation.comparisons:
        return None
    lost, scale = view.retention_unit(task), view.retention_unit(task).scale
    gain, retained = view.plane_titles(task, lost)
    comparisons = sorted(mitigation.comparisons, key=lambda c: c.difference.value)
    rows = [
        {
            "mitigation": c.label,
            "plain arm": c.plain,
            gain: c.gain * view.unit(task).scale,
            retained: -c.forgetting * scale,
            "retention change of the plain arm at that gain": -c.baseline * scale,
            **interval_cells("difference", -c.difference, lost),
            "p, Holm": c.difference.p_holm,
            "seeds": c.difference.seeds,
            "seeds that learned more than the plain arm": c.beyond,
        }
        for c in comparisons
    ]
    titles = [title for title in rows[0] if "retention" in title or title == "difference"]
    digits = dict.fromkeys(titles, lost.digits + 1) | {gain: view.unit(task).digits + 1}
    frame = table_from_rows(rows, digits | {"p, Holm": 3})
    return Figure(
        key=view.key("mitigation", task),
        title=f"Mitigations at an equal score, {task}",
        finding=_finding(view, mitigation),
        data=frame,
        caption=_CAPTION,
        **interval_rows(
            frame,
            "mitigation",
            colors=[view.color(view.arm(task, c.plain)).light for c in comparisons],
            hollow=[c.difference.low is None for c in comparisons],
            words=["seeds"],
            x_title=f"retention beyond scaling, {lost.difference}",
            min_width=560,
        ),
    )


def _finding(view: StudyView, mitigation: TaskMitigation) -> str:
    tested = [c for c in mitigation.comparisons if c.difference.p_holm is not None]
    if not tested:
        return (
            f"{count(len(mitigation.comparisons), 'comparison')} over fewer than three seeds: the "
            "spread between seeds is unknown, so none shows which is better. Add seeds."
        )
    significant = [c for c in tested if (c.difference.p_holm or 0.0) < LEVEL]
    better = [c for c in significant if c.difference.value < 0]
    text = f"Of {count(len(tested), 'comparison')} tested together (Holm, 5 %), "
    if not significant:
        return text + "none is significant: treat the differences as hints."
    text += f"significantly better: {len(better)}, worse: {len(significant) - len(better)}."
    if better:
        first = min(better, key=lambda c: c.difference.value)
        more = amount(first.difference.value, view.retention_unit(mitigation.task))
        text += f" The largest improvement: {first.label}, {more} more retained."
    return text
