"""The page of a comparison of studies: one HTML file that opens offline."""

from pathlib import PurePath

import pandas as pd

from rankscope.formatting import count, difference, safe_text, unit_of
from rankscope.records import ComparedCell, Provenance, StudyComparison, StudyPair
from rankscope.report.charts.figure import Drawn, Figure, interval_cells
from rankscope.report.charts.interval_rows import interval_rows
from rankscope.report.page import render_page
from rankscope.report.style import FULL_COLOR, MUTED, Color, rank_colors
from rankscope.report.table_formats import table_from_rows

MAX_ARMS = 80  # Arms drawn; all of them are in the table
_DIGITS = {"first": 2, "second": 2, "difference": 2, "p": 4, "p, Holm": 4}
_CAPTION = """Right of zero, the second study scored higher. Lines are 95 % intervals. A hollow \
mark is unpaired: the studies did not score the same items in the same way."""


def render_comparison(comparison: StudyComparison, provenance: Provenance) -> str:
    ranks = compared_ranks(comparison)
    parts = [
        (pair, _facets_table(pair), comparison_figures(pair, place, ranks))
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
        parts=parts,
    )


def compared_ranks(comparison: StudyComparison) -> tuple[int, ...]:
    cells = [cell for pair in comparison.pairs for cell in pair.cells]
    return tuple(sorted({cell.rank for cell in cells if cell.rank is not None}))


def _facets_table(pair: StudyPair) -> pd.DataFrame:
    return table_from_rows(
        [
            {"what": f.what, "same": "yes" if f.same else "no", "details": f.text}
            for f in pair.facets
        ]
    )


def comparison_figures(pair: StudyPair, place: int, ranks: tuple[int, ...]) -> list[Figure]:
    """A figure for each training task; the bases come first."""
    tasks, colors = dict.fromkeys(cell.trained_on for cell in pair.cells), rank_colors(ranks)
    return [
        _draw_pair(pair, f"compared-{place}-{position}", task, colors)
        for position, task in enumerate(tasks)
    ]


def _draw_pair(
    pair: StudyPair, key: str, trained_on: str | None, colors: dict[int, Color]
) -> Figure:
    """One training task of a pair of studies; ``trained_on`` None: the untuned bases."""
    cells = [cell for cell in pair.cells if cell.trained_on == trained_on]
    # The drop-down opens on the training task.
    cells.sort(key=lambda cell: cell.tested_on != trained_on)
    frame = table_from_rows([row(cell) for cell in cells], _DIGITS)
    arms = list(dict.fromkeys(frame["arm"]))[:MAX_ARMS]
    is_drawn = frame["arm"].isin(arms)
    marks = [cell for cell, shown in zip(cells, is_drawn, strict=True) if shown]
    units = {unit_of(cell.score_unit).difference for cell in cells}
    drawn = interval_rows(
        frame[is_drawn],
        "arm",
        colors=[(FULL_COLOR if c.full else colors.get(c.rank or 0, MUTED)).light for c in marks],
        hollow=[not cell.paired for cell in marks],
        words=["tested on", "paired", "same models"],
        x_title=f"difference, {'points or nats' if len(units) > 1 else units.pop()}",
        layer="tested on",
    )
    about = "untuned bases" if trained_on is None else f"arms trained on {trained_on}"
    return Figure(
        key=key,
        title=f"{safe_text(pair.second, 60)} minus {safe_text(pair.first, 60)}, {about}",
        finding=_finding(cells),
        data=frame,
        caption=_CAPTION,
        choice_name="Tested on",
        **(Drawn() if trained_on is None else drawn),
    )


def row(cell: ComparedCell) -> dict[str, object]:
    """A cell in its unit."""
    unit, change = unit_of(cell.score_unit), cell.difference
    return {
        "arm": cell.arm or "base",
        "tested on": cell.tested_on,
        **interval_cells("first", cell.first, unit),
        **interval_cells("second", cell.second, unit),
        **interval_cells("difference", change, unit),
        "p": change.p,
        "p, Holm": change.p_holm,
        "paired": "yes" if cell.paired else "no",
        "same models": "yes" if cell.same_models else "no",
        "items": change.n,
        "seeds": change.seeds,
    }


def _finding(cells: list[ComparedCell]) -> str:
    arms = len({cell.arm for cell in cells})
    clear = [cell for cell in cells if cell.difference.is_clear_of_zero]
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
        text += f"; the largest is {difference(most.difference.value, unit_of(most.score_unit))} "
        text += f"({arm}on {most.tested_on})"
    text += "."
    if left_out > 0:
        text += f" {count(left_out, 'arm')} {'is' if left_out == 1 else 'are'} only in the table."
    return text
