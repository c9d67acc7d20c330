"""Expected net gain against the number of training rows.

There is a line for each rank and for full fine-tuning.
"""

from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.rank_lines import (
    Panel,
    RankAxis,
    RankLine,
    RankPoint,
    Reference,
    rank_plot,
)
from rankscope.report.columns import Column
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.style import SYMBOLS
from rankscope.report.table_formats import shown, table
from rankscope.report.tables import STUDY_COLUMNS, arm_row

_CAPTION = """Every rank, and full fine-tuning, stands at its rate of the highest expected \
net gain for each number of rows. More rows contain the fewer ones, and the steps follow from the \
epochs, so more rows are also more steps. {}"""
_COLUMNS = (
    *("arm", "rank", "rows", "lr", "expected_net_gain", "expected_net_gain_low"),
    *("expected_net_gain_high", "p_within_margin"),
)


@in_section("ranks", 7)
def _draw_rows(view: StudyView, task: str) -> Figure | None:
    """Draw the figure; None unless some arms differ in the number of rows."""
    lines: dict[str, list[ArmSummary]] = {}
    for arm in view.candidates(task):
        if arm.rows is not None:
            lines.setdefault(view.spec(arm).label_without("lr", "rows"), []).append(arm)
    lines = {name: arms for name, arms in lines.items() if len({arm.rows for arm in arms}) > 1}
    if not lines:
        return None
    unit = view.net_unit(task)
    gain = f"expected net gain, {unit.difference}"
    rows = [arm_row(view, arm) | {"rows": arm.rows} for arms in lines.values() for arm in arms]
    units = {"expected_net_gain": Column(gain, unit)}
    frame = shown(table([{n: row[n] for n in _COLUMNS} for row in rows], STUDY_COLUMNS | units))
    drawn = []
    for place, (name, arms) in enumerate(sorted(lines.items(), key=_by_rank)):
        ordered = sorted(arms, key=lambda arm: arm.rows or 0)
        points = tuple(RankPoint(arm.label, arm.rows or 1, view.color(arm)) for arm in ordered)
        drawn.append(RankLine(name, "solid", SYMBOLS[place % len(SYMBOLS)], points))
    axis = RankAxis(tuple(drawn), drawn[-1].label, title="training rows (log scale)")
    names = {line.points[-1].arm: line.label for line in drawn}
    plot = rank_plot(axis, [Panel(frame, gain, [Reference("base", 0.0)])], names)
    said = [r.text for r in view.advice(task).reasons if r.kind == "axis"]
    return Figure(
        key=view.key("rows", task),
        title=f"Expected net gain against training rows, {task}",
        finding=" ".join(said) or "The numbers of rows are not compared yet.",
        data=frame,
        plot=plot,
        caption=_CAPTION.format(axis.bands_note()),
    )


def _by_rank(line: tuple[str, list[ArmSummary]]) -> tuple[bool, int]:
    return line[1][0].is_full, line[1][0].rank or 0
