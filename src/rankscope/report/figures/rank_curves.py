"""Ranks trained one by one, cut from a nested run, and truncated: three curves over rank."""

from rankscope.formatting import Unit, plus_minus, with_interval
from rankscope.records import RankCurve, TaskRankCurves
from rankscope.report.charts.figure import Figure, interval_cells, interval_digits
from rankscope.report.charts.rank_lines import Panel, RankAxis, RankLine, RankPoint, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import Cell, table_from_rows

KINDS = {
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
    unit, lost = view.unit(task), view.forgetting_unit(task)
    score, kept = f"score, {unit.score}", f"retention change, {lost.difference}"
    beyond = {"score beyond trained": unit, "retention beyond trained": lost}
    rows = [row for curve in curves.curves for row in _rows(curve, score, kept, beyond)]
    digits = interval_digits(score, unit.digits + 1) | interval_digits(kept, lost.digits + 1)
    for title, of in beyond.items():
        digits |= interval_digits(title, of.digits + 1)
    frame = table_from_rows(rows, digits)
    lines = []
    for curve in curves.curves:
        name, dash, symbol = KINDS[curve.kind]
        ranks = [p.rank for p in curve.points if p.rank is not None]
        points = tuple(RankPoint(f"{name} r={r}", r, view.colors[r]) for r in ranks)
        lines.append(RankLine(name, dash, symbol, points))
    panels = [Panel(title, frame, title) for title in (score, kept)]
    return Figure(
        key=view.key("rank-curves", task),
        title=f"One run, or one per rank, {task}",
        finding=_finding(curves, unit, lost),
        data=frame,
        plot=rank_plot(RankAxis(tuple(lines)), panels),
        caption=_CAPTION,
    )


def _rows(
    curve: RankCurve, score: str, kept: str, beyond: dict[str, Unit]
) -> list[dict[str, Cell]]:
    name, (of_score, of_kept) = KINDS[curve.kind][0], beyond
    return [
        {
            "arm": f"{name} " + ("area" if point.rank is None else f"r={point.rank}"),
            "rank": point.rank,
            "learning rate": ", ".join(f"{rate:g}" for rate in curve.rates),
            **interval_cells(score, point.score, beyond[of_score]),
            **interval_cells(kept, point.forgetting and -point.forgetting, beyond[of_kept]),
            **interval_cells(of_score, point.score_beyond_trained, beyond[of_score]),
            **interval_cells(
                of_kept,
                point.forgetting_beyond_trained and -point.forgetting_beyond_trained,
                beyond[of_kept],
            ),
        }
        for point in curve.points
    ]


def _finding(curves: TaskRankCurves, unit: Unit, lost: Unit) -> str:
    parts = []
    for curve in curves.curves:
        area, name = curve.points[-1], KINDS[curve.kind][0]
        if area.score_beyond_trained is None:
            parts.append(f"{name} {plus_minus(area.score, unit)} {unit.score}")
            continue
        text = f"{name} {with_interval(area.score_beyond_trained, unit)}"
        if area.forgetting_beyond_trained is not None:
            text += f", retention {with_interval(-area.forgetting_beyond_trained, lost)}"
        parts.append(text)
    return (
        f"Area under the score over log2 of the rank: {parts[0]}. Beyond that: "
        f"{'; '.join(parts[1:])}."
    )
