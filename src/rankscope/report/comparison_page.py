"""The page of a comparison of studies: one HTML file that opens offline."""

from pathlib import Path, PurePath

import pandas as pd

from rankscope.formatting import NATS, POINTS, Unit, count, difference, number, safe_text
from rankscope.records import ComparedCell, Provenance, StudyComparison, StudyPair
from rankscope.report.charts.figure import Figure, make_table, plot_text
from rankscope.report.charts.interval_rows import IntervalRow, interval_rows
from rankscope.report.page import render_page, write_page
from rankscope.report.style import FULL, MUTED, Color, rank_colors

MAX_ARMS = 80
"""Arms drawn; all of them are in the table."""
ESTIMATES = ("first", "second", "difference")
COLUMNS = {
    **dict.fromkeys(("arm", "tested on")),
    **{f"{name}{end}": 2 for name in ESTIMATES for end in ("", ", low", ", high")},
    "p": 4,
    "p, Holm": 4,
    "paired": None,
    "same models": None,
    "items": 0,
    "seeds": 0,
}
CAPTION = """Right of zero, the second study scored higher. Lines are 95 % intervals. A hollow \
mark is unpaired: the studies did not score the same items in the same way."""


def write_comparison_page(comparison: StudyComparison, provenance: Provenance, path: Path) -> None:
    """Write a comparison as one offline HTML page, replacing ``path`` in one step.

    Raises:
        UserError: ``path`` is a folder, or its folder does not exist.
    """
    write_page(path, lambda: render_comparison(comparison, provenance))


def render_comparison(comparison: StudyComparison, provenance: Provenance) -> str:
    """The whole page as text."""
    ranks = compared_ranks(comparison)
    parts = [
        (pair, facets_table(pair), comparison_figures(pair, place, ranks))
        for place, pair in enumerate(comparison.pairs)
    ]
    return render_page(
        "comparison.html.j2",
        [figure for _, _, of_pair in parts for figure in of_pair],
        ranks,
        provenance,
        comparison=comparison,
        # The full paths of the studies stay private: a page is passed on.
        folders=[(s.label, PurePath(s.folder).name or s.label) for s in comparison.studies],
        tasks=list(dict.fromkeys(a.task for s in comparison.studies for a in s.answers)),
        parts=parts,
    )


def compared_ranks(comparison: StudyComparison) -> tuple[int, ...]:
    """Every rank that is compared, rising."""
    cells = [cell for pair in comparison.pairs for cell in pair.cells]
    return tuple(sorted({cell.rank for cell in cells if cell.rank is not None}))


def facets_table(pair: StudyPair) -> pd.DataFrame:
    """What the studies were made of."""
    rows = [(f.what, "yes" if f.same else "no", f.text) for f in pair.facets]
    return make_table({"what": None, "same": None, "details": None}, rows)


def comparison_figures(pair: StudyPair, place: int, ranks: tuple[int, ...]) -> list[Figure]:
    """A figure for each training task; the bases come first."""
    tasks, colors = dict.fromkeys(cell.trained_on for cell in pair.cells), rank_colors(ranks)
    return [
        draw_pair(pair, f"compared-{place}-{position}", task, colors)
        for position, task in enumerate(tasks)
    ]


def draw_pair(
    pair: StudyPair, key: str, trained_on: str | None, colors: dict[int, Color]
) -> Figure:
    """One training task of a pair of studies; ``trained_on`` None: the untuned bases."""
    cells = [cell for cell in pair.cells if cell.trained_on == trained_on]
    tests = sorted(dict.fromkeys(c.tested_on for c in cells), key=lambda test: test != trained_on)
    arms = list(dict.fromkeys(cell.arm or "base" for cell in cells))[:MAX_ARMS]
    layers = {
        test: [mark(c, colors) for c in cells if c.tested_on == test and (c.arm or "base") in arms]
        for test in tests
    }
    units = {unit_of(cell).difference for cell in cells}
    unit = "points or nats" if len(units) > 1 else units.pop()
    plot, choices = interval_rows(layers, arms, f"difference, {unit}")
    about = "untuned bases" if trained_on is None else f"arms trained on {trained_on}"
    return Figure(
        key=key,
        title=f"{safe_text(pair.second, 60)} minus {safe_text(pair.first, 60)}, {about}",
        finding=finding(cells),
        data=make_table(COLUMNS, [row(cell) for cell in cells]),
        plot=None if trained_on is None else plot,
        caption=CAPTION,
        choices=choices,
        choice_name="Tested on",
    )


def unit_of(cell: ComparedCell) -> Unit:
    """The unit of the scores of a task."""
    return POINTS if cell.score_unit == "accuracy" else NATS


def row(cell: ComparedCell) -> tuple[object, ...]:
    """A cell in its unit."""
    scale, change = unit_of(cell).scale, cell.difference
    values = [
        None if value is None else value * scale
        for estimate in (cell.first, cell.second, change)
        for value in (estimate.value, estimate.low, estimate.high)
    ]
    flags = ["yes" if flag else "no" for flag in (cell.paired, cell.same_models)]
    arm = cell.arm or "base"
    return (
        arm, cell.tested_on, *values, change.p, change.p_holm, *flags, change.n, change.seeds
    )  # fmt: skip


def mark(cell: ComparedCell, colors: dict[int, Color]) -> IntervalRow:
    """A mark of the plot."""
    scale, arm = unit_of(cell).scale, cell.arm or "base"
    value, low, high = (
        None if v is None else v * scale
        for v in (cell.difference.value, cell.difference.low, cell.difference.high)
    )
    ends = "the same models" if cell.same_models else "interval unknown"
    if low is None or high is None:
        low = high = None
    else:
        ends = f"{number(low, 2)} to {number(high, 2)}"
    hover = f"<b>{plot_text(arm)}</b><br>{plot_text(cell.tested_on)}: {number(value, 2)} ({ends})"
    hover += f"<br>{'paired' if cell.paired else 'unpaired'}"
    color = FULL if cell.full else colors.get(cell.rank or 0, MUTED)
    return IntervalRow(arm, value or 0.0, low, high, color.light, hover, hollow=not cell.paired)


def finding(cells: list[ComparedCell]) -> str:
    """How many differences exclude zero, and the largest."""
    arms = len({cell.arm for cell in cells})
    clear = [
        c
        for c in cells
        if c.difference.low is not None
        and c.difference.high is not None
        and (c.difference.low > 0 or c.difference.high < 0)
    ]
    compared = "The bases" if cells[0].arm is None else f"{count(arms, 'arm')} in both studies"
    same, left_out = sum(cell.same_models for cell in cells), arms - MAX_ARMS
    paired = sum(cell.paired for cell in cells)
    text = f"{compared}, {count(len(cells), 'score')} compared, {paired} of them item by item; "
    text += f"{len(clear)} with an interval that excludes zero"
    if same:
        text += f"; {same} are of the very same models"
    if clear:
        most = max(clear, key=lambda cell: abs(cell.difference.value))
        arm = "" if most.arm is None else f"{most.arm} "
        text += f"; the largest is {difference(most.difference.value, unit_of(most))} "
        text += f"({arm}on {most.tested_on})"
    text += "."
    if left_out > 0:
        text += f" {count(left_out, 'arm')} {'is' if left_out == 1 else 'are'} only in the table."
    return text
