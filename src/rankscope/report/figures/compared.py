"""Arms that two studies both have: the difference of their scores, arm by arm."""

from typing import Any

import plotly.graph_objects as go

from rankscope.formatting import NATS, POINTS, Unit, count, difference, number, safe_text
from rankscope.records import ComparedCell, StudyPair
from rankscope.report.charts.figure import Choice, Column, Figure, axis, layout, name, table
from rankscope.report.style import FULL, MUTED, Color, rank_colors

MAX_ARMS = 80
"""Arms drawn; all of them are in the table."""
ROW = 26
"""Height of an arm's row, pixels."""


def unit_of(cell: ComparedCell) -> Unit:
    """How the task's scores are written."""
    return POINTS if cell.score_unit == "accuracy" else NATS


def draw(pair: StudyPair, key: str, trained_on: str | None, ranks: tuple[int, ...]) -> Figure:
    """One training task of a pair of studies; None: the untuned bases."""
    cells = [c for c in pair.cells if c.trained_on == trained_on]
    tests = list(dict.fromkeys(c.tested_on for c in cells))
    if trained_on in tests:  # what was trained on comes first
        tests.remove(trained_on)
        tests.insert(0, trained_on)
    about = "untuned bases" if trained_on is None else f"arms trained on {trained_on}"
    return Figure(
        key=key,
        title=f"{safe_text(pair.second, 60)} minus {safe_text(pair.first, 60)}, {about}",
        finding=finding(pair, cells),
        table=table(columns(), [row(cell) for cell in cells]),
        plot=None if trained_on is None else plot(cells, tests, rank_colors(ranks)),
        how_to_read="Right of zero the second study scored higher. Lines are 95 % intervals; a "
        "hollow mark stands where the studies did not ask the same items in the same way, so that "
        "nothing is paired.",
        choices=tuple(Choice(test, (i,)) for i, test in enumerate(tests)),
        choice_name="Tested on",
    )


def finding(pair: StudyPair, cells: list[ComparedCell]) -> str:
    """How many differences leave zero out, and the largest."""
    arms = len({c.arm for c in cells})
    apart = [c for c in cells if is_clear(c)]
    what = "The bases" if cells[0].arm is None else count(arms, "arm") + " in both"
    same, left_out = sum(c.same_models for c in cells), arms - MAX_ARMS
    text = f"{what}, {count(len(cells), 'score')} compared, {sum(c.paired for c in cells)} of them "
    text += f"item by item; {len(apart)} with an interval that leaves zero out"
    if same:
        text += f"; {same} of the very same models"
    drawn, are = "", "is" if left_out == 1 else "are"
    if left_out > 0:
        drawn = f" {count(left_out, 'arm')} {are} in the table alone."
    if not apart:
        return f"{text}.{drawn}"
    largest = max(apart, key=lambda c: abs(c.difference.value))
    arm = "" if largest.arm is None else f"{largest.arm} "
    value = difference(largest.difference.value, unit_of(largest))
    return f"{text}, the largest {value} ({arm}on {largest.tested_on}).{drawn}"


def is_clear(cell: ComparedCell) -> bool:
    """Whether the interval is known and leaves zero out."""
    low, high = cell.difference.low, cell.difference.high
    return low is not None and high is not None and (low > 0 or high < 0)


def columns() -> list[Column]:
    """Of the data table; scores in per cent and points, or nats per token."""
    scores = [Column(c, 2) for which in ("first", "second") for c in (which, "low", "high")]
    return [
        *(Column("arm"), Column("tested on"), *scores),
        *(Column("difference", 2), Column("low", 2), Column("high", 2), Column("p", 4)),
        *(Column("p, Holm", 4), Column("paired"), Column("same models")),
        *(Column("items", 0), Column("seeds", 0)),
    ]


def row(cell: ComparedCell) -> tuple[str | float | int | None, ...]:
    """One cell of the comparison as a row."""
    scale, e = unit_of(cell).scale, cell.difference
    ends = [
        None if v is None else v * scale
        for found in (cell.first, cell.second, e)
        for v in (found.value, found.low, found.high)
    ]
    paired = "yes" if cell.paired else "no"
    same = "yes" if cell.same_models else "no"
    return (cell.arm or "base", cell.tested_on, *ends, e.p, e.p_holm, paired, same, e.n, e.seeds)


def plot(cells: list[ComparedCell], tests: list[str], colors: dict[int, Color]) -> go.Figure:
    """One layer of marks per tested task, an arm a row."""
    arms = list(dict.fromkeys(c.arm or "base" for c in cells))[:MAX_ARMS]
    figure = go.Figure(
        layout=layout(110 + ROW * len(arms), margin={"l": 56, "r": 20, "t": 16, "b": 52})
    )
    for place, test in enumerate(tests):
        own = [c for c in cells if c.tested_on == test and (c.arm or "base") in arms]
        add_marks(figure, own, colors, place == 0)
    units = {unit_of(c) for c in cells}
    unit = NATS.difference if units == {NATS} else POINTS.difference
    figure.update_xaxes(axis(f"difference, {unit}" + ("" if len(units) == 1 else " or nats")))
    order = [name(arm) for arm in arms]
    rows: dict[str, Any] = {"type": "category", "categoryorder": "array", "categoryarray": order}
    figure.update_yaxes(axis("", **rows, showgrid=False, ticks="", autorange="reversed"))
    return figure


def add_marks(
    figure: go.Figure, cells: list[ComparedCell], colors: dict[int, Color], shown: bool
) -> None:
    """The differences of one tested task."""
    values, below, above, hover = [], [], [], []
    for cell in cells:
        scale, e = unit_of(cell).scale, cell.difference
        known = e.low is not None and e.high is not None
        values.append(e.value * scale)
        below.append((e.value - e.low) * scale if known and e.low is not None else 0)
        above.append((e.high - e.value) * scale if known and e.high is not None else 0)
        ends = (
            f"{number(e.low * scale, 2)} to {number(e.high * scale, 2)}"
            if e.low is not None and e.high is not None
            else ("the same models" if cell.same_models else "interval unknown")
        )
        hover.append(
            f"<b>{name(cell.arm or 'base')}</b><br>{name(cell.tested_on)}: "
            f"{number(e.value * scale, 2)} ({ends})<br>{'paired' if cell.paired else 'unpaired'}"
        )
    marks = [FULL.light if c.full else colors.get(c.rank or 0, MUTED).light for c in cells]
    figure.add_scatter(
        x=values,
        y=[name(c.arm or "base") for c in cells],
        mode="markers",
        marker={
            "color": marks,
            "size": 10,
            "symbol": ["circle" if c.paired else "circle-open" for c in cells],
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": MUTED.light,
            "thickness": 1,
            "width": 0,
        },
        hoverinfo="text",
        hovertext=hover,
        visible=shown,
    )
