"""The page of a comparison of studies: one HTML file that opens offline."""

from pathlib import Path, PurePath

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rankscope.records import Provenance, StudyComparison, StudyPair
from rankscope.report.charts.figure import Column, DataTable, Figure, table
from rankscope.report.figures import compared
from rankscope.report.page import embedded, figure_data, source, templates, write_page
from rankscope.report.style import dark_colors


def write_comparison_page(found: StudyComparison, made_by: Provenance, path: Path) -> None:
    """Write a comparison as one offline HTML page, replacing ``path`` in one step.

    Raises:
        UserError: ``path`` is a folder, or its folder does not exist.
    """
    write_page(path, lambda: render(found, made_by))


def render(found: StudyComparison, made_by: Provenance) -> str:
    """The whole page as text."""
    ranks = ranks_of(found)
    parts = [
        (pair, facets_table(pair), figures(pair, place, ranks))
        for place, pair in enumerate(found.pairs)
    ]
    drawn = [figure for _, _, of_pair in parts for figure in of_pair]
    environment = templates()
    return environment.get_template("comparison.html.j2").render(
        found=found,
        # Where they lie is their owner's business; a page is passed on.
        places=[(s.label, PurePath(s.folder).name or s.label) for s in found.studies],
        tasks=list(dict.fromkeys(a.task for s in found.studies for a in s.answers)),
        parts=parts,
        provenance=made_by,
        plotly=Markup(get_plotlyjs()),
        style=Markup(source(environment, "report.css")),
        script=Markup(source(environment, "report.js")),
        figures_json=embedded({f.key: figure_data(f) for f in drawn if f.plot is not None}),
        dark_json=embedded(dark_colors(ranks)),
    )


def ranks_of(found: StudyComparison) -> tuple[int, ...]:
    """Every rank that is compared, rising."""
    ranks = {cell.rank for pair in found.pairs for cell in pair.cells if cell.rank is not None}
    return tuple(sorted(ranks))


def facets_table(pair: StudyPair) -> DataTable:
    """What both are made of."""
    columns = [Column("what"), Column("same"), Column("in words")]
    return table(columns, [(f.what, "yes" if f.same else "no", f.text) for f in pair.facets])


def figures(pair: StudyPair, place: int, ranks: tuple[int, ...]) -> list[Figure]:
    """Training task by training task; the bases first."""
    tasks = dict.fromkeys(cell.trained_on for cell in pair.cells)
    return [
        compared.draw(pair, f"compared-{place}-{position}", task, ranks)
        for position, task in enumerate(tasks)
    ]
