"""The figures of a report as files for a paper or slides, drawn by Chromium through kaleido."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import plotly.graph_objects as go

from rankscope.errors import UserError, first_line, installed, reporting_shortages
from rankscope.filesystem import check_folder, make_folder, replace_text
from rankscope.formatting import markdown_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.charts.figure import Figure
from rankscope.report.page_limit import limited
from rankscope.report.study_page import study_sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import INK

FigureFormat = Literal["pdf", "svg", "png"]
WIDTH = 720  # Pixels; a figure that scrolls on the page is as wide as it needs
PRINT_SCALE = 3  # Pixels of a PNG per pixel of the page
LEGEND = 30  # Height of a legend, pixels


def write_study_figures(
    study: StudyRecords, recommendation: Recommendation, out: Path, file_format: FigureFormat
) -> list[Path]:
    """Write every figure of the report as ``KEY.pdf`` (or svg, png), and ``figures.md``.

    A figure with a drop-down shows its first entry. ``figures.md`` lists title, finding and caption
    of each file. Raises UserError: no browser could be started. Raises DiskFull: there is no space.
    """
    view = limited(StudyView(study, recommendation))
    drawn = [figure for section in study_sections(view) for figure in section.figures]
    figures = [figure for figure in drawn if figure.plot is not None]
    with reporting_shortages(out):
        make_folder(out)
        paths = draw_files(figures, out, file_format, _line_names(view))
    entries = [_list_entry(figure, path) for figure, path in zip(figures, paths, strict=True)]
    replace_text(out / "figures.md", "\n".join(entries))
    return paths


def _list_entry(figure: Figure, path: Path) -> str:
    title = markdown_text(figure.title)
    text = markdown_text(f"{figure.finding} {figure.caption}")
    return f"## {title}\n\n`{path.name}`\n\n{text}\n"


def check_figures(folder: Path, out: Path) -> None:
    check_folder(folder, out, "--figures")
    with installed("--figures", "figures"):
        import kaleido  # noqa: F401


def _line_names(view: StudyView) -> dict[str, str]:
    """Return the label of every line over rank by its dash; empty if one line needs no name."""
    lines = [line for task in view.training_tasks for line in view.rank_axis(task).lines]
    names = {line.dash: line.label for line in lines}
    return names if len(names) > 1 else {}


def draw_files(
    figures: Sequence[Figure], out: Path, file_format: FigureFormat, lines: Mapping[str, str]
) -> list[Path]:
    """Draw figures into files named by their keys, in one run of the browser.

    ``lines`` are names for a legend, by dash.
    """
    import kaleido
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError

    paths = [out / f"{figure.key}.{file_format}" for figure in figures]
    scale = PRINT_SCALE if file_format == "png" else 1
    specs = []
    for figure, path in zip(figures, paths, strict=True):
        plot = _static_plot(figure, lines)
        size = {"width": plot.layout.width, "height": plot.layout.height, "scale": scale}
        specs.append({"fig": plot, "path": str(path), "opts": {"format": file_format, **size}})
    try:
        kaleido.write_fig_from_object_sync(specs, kopts={"mathjax": False})
    except (ChromeNotFoundError, BrowserFailedError) as error:
        found, wanted = f"no browser that starts ({first_line(error)})", "Chrome or Chromium"
        do = "install one, or set BROWSER_PATH to it"
        raise UserError("--figures", found, f"{wanted} to draw them", do) from error
    return paths


def _static_plot(figure: Figure, lines: Mapping[str, str]) -> go.Figure:
    """Draw the plot without the page around it: one entry of its drop-down, a legend of its lines.

    The page has one key for all figures, and shows the numbers of a heat map under the pointer.
    """
    plot = go.Figure(figure.plot)
    if figure.choices:
        shown = [plot.data[i] for i in figure.choices[0].traces]
        plot.data = shown
        plot.update_traces(visible=True)
    dashes = {t.line.dash for t in plot.data if t.type == "scatter" and t.mode == "lines+markers"}
    white = dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), "white")
    plot.update_layout(width=max(WIDTH, figure.min_width), **white)
    maps = [trace for trace in plot.data if trace.type == "heatmap"]
    for trace in maps[-1:]:  # panels share one scale
        trace.update(showscale=True, colorbar={"thickness": 12, "outlinewidth": 0})
    if len(named := [dash for dash in lines if dash in dashes]) > 1:
        plot.update_traces(showlegend=False, selector={"type": "scatter"})
        for dash in named:
            line = {"dash": dash, "color": INK.light, "width": 1.5}
            plot.add_scatter(x=[None], y=[None], mode="lines", line=line, name=lines[dash])
        below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
        height, bottom = plot.layout.height + LEGEND, plot.layout.margin.b + LEGEND
        plot.update_layout(showlegend=True, legend=below, height=height, margin_b=bottom)
    return plot
