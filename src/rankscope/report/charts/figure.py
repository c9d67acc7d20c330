"""What a figure of the report is: a title, what it shows, the plot and the numbers behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from rankscope.formatting import number, safe_text
from rankscope.report.style import GRID, INK, MUTED, NEUTRAL, SURFACE

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a data table."""

    title: str
    """With its unit."""
    digits: int | None = None
    """Digits after the point shown; three significant ones where None. CSV has them all."""


@dataclass(frozen=True, slots=True)
class DataTable:
    """The numbers behind a figure; None is unknown."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def shown(self, value: Cell, column: Column) -> str:
        """One cell as the page shows it."""
        return safe_text(value, 300) if isinstance(value, str) else number(value, column.digits)


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a figure's drop-down: the traces it shows."""

    label: str
    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the report."""

    key: str
    """Unique in the page; letters, digits and hyphens."""
    title: str
    finding: str
    """What to see, computed from the data; or what is missing, where there is no plot."""
    table: DataTable
    plot: go.Figure | None = None
    how_to_read: str = ""
    choices: tuple[Choice, ...] = ()
    choice_name: str = "Arm"
    """What the drop-down chooses."""
    min_width: int = 0
    """Pixels below which the figure scrolls sideways instead of shrinking."""


def axis(title: str = "", **settings: object) -> dict[str, object]:
    """Settings of a plain axis in the report's colours."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13, "color": MUTED.light}},
        "gridcolor": GRID.light,
        "zerolinecolor": MUTED.light,
        "zerolinewidth": 1,
        "linecolor": GRID.light,
        "tickcolor": GRID.light,
        "ticks": "outside",
        "automargin": True,
    } | settings


def layout(height: int, **settings: object) -> go.Layout:
    """The layout every figure starts from; ``height`` in pixels."""
    return go.Layout(
        **(
            {
                "height": height,
                "font": {"family": FONT, "size": 13, "color": INK.light},
                "paper_bgcolor": SURFACE.light,
                "plot_bgcolor": SURFACE.light,
                "margin": {"l": 48, "r": 20, "t": 36, "b": 48},
                "showlegend": False,
                "hoverlabel": {
                    "bgcolor": NEUTRAL.light,
                    "bordercolor": GRID.light,
                    "font": {"family": FONT, "size": 13, "color": INK.light},
                    "align": "left",
                },
                # A drag scrolls the page on a phone; zoom is in the tool bar.
                "dragmode": False,
                "modebar": {
                    "bgcolor": "rgba(0,0,0,0)",
                    "color": MUTED.light,
                    "activecolor": INK.light,
                },
            }
            | settings
        )
    )


def heading(text: str, y: float) -> dict[str, object]:
    """A panel's heading: an annotation flush left above height ``y`` of the paper."""
    return {
        "text": name(text),
        "x": 0,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": -4,
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 13, "color": MUTED.light},
    }


def name(text: object) -> str:
    """A name from the data for use inside a plot: cut, and inert in Plotly's own mark-up."""
    cut = safe_text(text, 60)
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> DataTable:
    """A data table from rows of cells."""
    return DataTable(tuple(columns), tuple(tuple(row) for row in rows))
