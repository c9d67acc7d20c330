"""Ranks trained one by one, cut from a nested run, and truncated: three curves over rank."""

from rankscope.formatting import plus_minus, with_interval
from rankscope.records import Estimate
from rankscope.report.charts.figure import Figure, interval_cells
from rankscope.report.charts.rank_lines import Panel, RankAxis, RankLine, RankPoint, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

CURVES = {
    "trained": ("trained at each rank", "solid", "circle"),
    "nested": ("slices of a nested run", "dash", "diamond"),
    "truncated": ("truncations of the largest", "dot", "square"),
}
"""Name of a curve, dash and symbol."""
_CAPTION = """Test split, same seeds. Solid with circles: trained at each rank; dashes with \
diamonds: slices of a nested run; dots with squares: the adapter of the largest rank truncated by \
its singular values. Learning rates are chosen by validation score: for each rank, or for a whole \
nested run. Bands are 95 % intervals. The area is the mean over log2 of the rank."""


@register("ranks", 20)
def draw_rank_curves(view: StudyView, task: str) -> Figure | None:
    curves = view.rank_curves(task)
    if curves is None:
        return None
    unit, lost = view.unit(task), view.retention_unit(task)
    score, kept = f"score, {unit.score}", f"retention change, {lost.difference}"
    more, more_kept = "score beyond trained", "retention beyond trained"
    rows, lines, areas = [], [], []
    for curve in curves.curves:
        name, dash, symbol = CURVES[curve.kind]
        for p in curve.points:
            rows.append(
                {
                    "arm": f"{name} " + (f"r={p.rank}" if p.rank else "area"),
                    "learning rate": ", ".join(f"{rate:g}" for rate in curve.rates),
                    **interval_cells(score, p.score, unit),
                    **interval_cells(kept, _turned(p.forgetting), lost),
                    **interval_cells(more, p.more_score, unit),
                    **interval_cells(more_kept, _turned(p.more_forgetting), lost),
                }
            )
        ranks = [p.rank for p in curve.points if p.rank]
        points = tuple(RankPoint(f"{name} r={r}", r, view.colors[r]) for r in ranks)
        lines.append(RankLine(name, dash, symbol, points))
        area = curve.points[-1]
        if area.more_score is None:
            areas.append(f"{name} {plus_minus(area.score, unit)} {unit.score}")
        else:
            turned = _turned(area.more_forgetting)
            retained = "" if turned is None else f", retention {with_interval(turned, lost)}"
            areas.append(f"{name} {with_interval(area.more_score, unit)}{retained}")
    digits = dict.fromkeys((score, more), unit.digits + 1)
    frame = table_from_rows(rows, digits | dict.fromkeys((kept, more_kept), lost.digits + 1))
    return Figure(
        key=view.key("rank-curves", task),
        title=f"One run, or one per rank, {task}",
        finding=f"Area under the score over log2 of the rank: {areas[0]}. Beyond that, with 95 % "
        f"intervals: {'; '.join(areas[1:])}.",
        data=frame,
        plot=rank_plot(RankAxis(tuple(lines)), [Panel(frame, t) for t in (score, kept)]),
        caption=_CAPTION,
    )


def _turned(forgetting: Estimate | None) -> Estimate | None:
    return None if forgetting is None else -forgetting
