"""The figures and sections of the pages. A figure is one file of this folder; no other names it.

An extension's figures are in its own file or folder ``figures``.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

from rankscope.registry import by_name, extension_files, files_of, objects
from rankscope.report.charts.figure import Figure


class Section(NamedTuple):
    """A section of the pages; ``place`` orders them. A page adds the figures."""

    key: str
    place: float
    title: str
    lead: str = ""
    folded: bool = False  # On the page of a study that trains: few readers need it
    figures: tuple[Figure, ...] = ()  # Figures of one page


RANKS_SECTION = Section(
    "ranks",
    5,
    "How much rank is enough",
    "The net gain that is expected of every rank, then what was measured on the test split.",
)
PLANES_SECTION = Section(
    "planes",
    10,
    "Learning against retention",
    "What each configuration learned in its domain and what it kept elsewhere.",
)
TRANSFER_SECTION = Section(
    "transfer", 40, "Effect on other tasks", "Every tested task for every training task."
)
TRAINING_SECTION = Section("training", 70, "Training curves", folded=True)

Scope = Literal["task", "unit", "models"]
Draw = Callable[..., Figure | None]


class Drawing(partial[Figure | None]):
    """A function that draws a figure, with the place, section and scope where it is shown."""

    shown: tuple[float, str, Scope]


def in_section(section: str, place: float, *, per: Scope = "task") -> Callable[[Draw], Drawing]:
    """Put a figure into a section of the pages, ordered by ``place``; for use as a decorator.

    The function is called as ``draw(view, task)`` for each training task, or as
    ``draw(view, unit)`` for each unit of scores. Otherwise it is ``draw(models)`` for the analyzed
    models of a training task, or for given models. It returns None if there is nothing to show or
    to explain.
    """

    def place_it(draw: Draw) -> Drawing:
        drawing = Drawing(draw)
        drawing.shown = place, section, per
        return drawing

    return place_it


@cache
def figure_files() -> tuple[ModuleType, ...]:
    """Import the files of this folder, and the figures of extensions and of other packages."""
    packages = (sys.modules[__name__], *extension_files("figures"))
    return tuple(file for package in packages for file in (package, *files_of(package)))


def all_sections() -> list[Section]:
    """Return the sections in the order of the pages. Raises UserError: two have one key."""
    found = by_name("section", [(of.key, of) for of in objects(Section, figure_files())])
    return sorted(found.values(), key=lambda section: section.place)


def draw_section(section: str, per: Scope, *subject: Any) -> list[Figure]:
    """Draw the figures of one section and scope, in order."""
    drawings = sorted(objects(Drawing, figure_files()), key=lambda drawing: drawing.shown)
    drawn = (draw(*subject) for draw in drawings if draw.shown[1:] == (section, per))
    return [figure for figure in drawn if figure is not None]
