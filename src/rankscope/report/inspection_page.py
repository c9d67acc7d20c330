"""The page of an inspection: one HTML file that opens offline."""

from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rankscope.records import Inspection
from rankscope.report.charts.head_maps import precision
from rankscope.report.figures import inspected
from rankscope.report.figures.inspected_heads import head_figures
from rankscope.report.page import Section, embedded, figure_data, source, templates, write_page
from rankscope.report.style import dark_colors


def write_inspection_page(found: Inspection, path: Path) -> None:
    """Write an inspection as one offline HTML page, replacing ``path`` in one step.

    Raises:
        UserError: ``path`` is a folder, or its folder does not exist.
    """
    write_page(path, lambda: render(found))


def render(found: Inspection) -> str:
    """The whole page as text."""
    parts = sections(found)
    drawn = [figure for part in parts for figure in part.figures]
    environment = templates()
    return environment.get_template("inspection.html.j2").render(
        found=found,
        provenance=found.provenance,
        sections=parts,
        plotly=Markup(get_plotlyjs()),
        style=Markup(source(environment, "report.css")),
        script=Markup(source(environment, "report.js")),
        figures_json=embedded({f.key: figure_data(f) for f in drawn if f.plot is not None}),
        dark_json=embedded(dark_colors([])),
    )


def sections(found: Inspection) -> list[Section]:
    """The figures in reading order; a new figure is one function and one line here."""
    maps = {m.key: inspected.draw_measure(found, m) for m in inspected.MEASURES}
    side = [inspected.draw_modules(found)]
    if found.growth is not None:
        side.append(inspected.draw_growth(found.growth))
    parts = [
        Section("size", "How much changed", "", (*side, maps["relative"], maps["effective"])),
        Section(
            "vectors",
            "How much of it is new",
            "W0 is the base weight, W the tuned one, dW what training added.",
            (maps["kept"], maps["intruders"]),
        ),
    ]
    if heads := head_figures(found):
        lead = "What tuning did to each head of each layer, on the same items before and after. "
        lead += precision(next(m.heads.dtype for m in found.tuned if m.heads is not None))
        parts.append(Section("heads", "Attention heads", lead, heads))
    return parts
