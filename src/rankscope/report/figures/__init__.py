"""The figures of the pages, one file each. A file registers its figure; no other file names it.

The figures of an extension are in its own file or folder ``figures``.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from rankscope.registry import extension_files, files_of
from rankscope.report.charts.figure import Figure


class Section(NamedTuple):
    """A section of the pages.

    SECTIONS states its place in the order, title, lead and whether it is folded; a page adds its
    key and figures.
    """

    place: float
    title: str
    lead: str = ""
    folded: bool = False  # On the page of a study that trains: few readers need it
    key: str = ""
    figures: tuple[Figure, ...] = ()  # Of one page


SECTIONS = {
    "ranks": Section(
        5,
        "How much rank is enough",
        "The net gain that is expected of every rank, then what was measured on the test split.",
    ),
    "planes": Section(
        10,
        "Learning against retention",
        "What each arm learned in its domain and what it kept elsewhere.",
    ),
    "transfer": Section(40, "Effect on other tasks", "Every tested task for every training task."),
    "training": Section(70, "Training"),
}
"""Sections by key; the figures of an extension may add one."""

Scope = Literal["task", "unit", "models"]
Draw = Callable[..., Figure | None]

REGISTRY: dict[Draw, tuple[float, str, Scope]] = {}
"""Maps a function that draws a figure to its place, section and scope."""


def register(section: str, place: float, *, per: Scope = "task") -> Callable[[Draw], Draw]:
    """Put a figure into a section of the pages, ordered by ``place``; for use as a decorator.

    The function is called as ``draw(view, task)`` for each training task, or as
    ``draw(view, unit)`` for each unit of scores. Otherwise it is ``draw(models)`` for the analyzed
    models of a training task, or for given models. It returns None if there is nothing to show or
    to explain.
    """

    def add(draw: Draw) -> Draw:
        REGISTRY[draw] = place, section, per
        return draw

    return add


def all_sections() -> dict[str, Section]:
    """Return the sections in the order of the pages."""
    import_figures()
    return dict(sorted(SECTIONS.items(), key=lambda item: item[1].place))


def draw_section(section: str, per: Scope, *subject: Any) -> Iterator[Figure]:
    """Draw the figures of one section that are registered for one scope, in order."""
    import_figures()
    for draw in sorted(REGISTRY, key=lambda draw: REGISTRY[draw][0]):
        if REGISTRY[draw][1:] == (section, per):
            figure = draw(*subject)
            if figure is not None:
                yield figure


@cache
def import_figures() -> None:
    """Import the files of this folder, and the figures of extensions and of other packages."""
    for package in (sys.modules[__name__], *extension_files("figures")):
        list(files_of(package))
