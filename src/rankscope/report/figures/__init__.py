"""The figures of the pages, one file each. A file registers its figure; no other file names it.

The figures of an analysis are in its own folder (``analyses/NAME/figures``).
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

from rankscope import analyses
from rankscope.report.charts.figure import Figure

SECTIONS = {
    "planes": (
        "Learning against retention",
        "What each arm learned in its domain and what it kept elsewhere.",
    ),
    "mitigation": (
        "Forgetting less",
        "What remains when an update is scaled down, and how other mitigations compare with that.",
    ),
    "ranks": (
        "How much rank is enough",
        "Scores on the test split, against LoRA rank if the study varies it.",
    ),
    "transfer": ("Effect on other tasks", "Every tested task for every training task."),
    "weights": (
        "Inside the weights",
        "W0 is a base weight matrix, dW what training added to it, and W = W0 + dW.",
    ),
    "heads": (
        "Attention heads",
        "What training did to each head of each layer, on the same items before and after.",
    ),
    "training": ("Training", ""),
}
"""Title and lead of each section, in the order of the pages."""
FOLDED = ("weights", "heads")
"""Sections that the page of a study shows folded: few readers need them."""

Scope = Literal["task", "unit", "models"]
Draw = Callable[..., Figure | None]

REGISTRY: dict[Draw, tuple[float, str, Scope]] = {}
"""Function that draws a figure -> its place, section and scope."""


def register(section: str, place: float, *, per: Scope = "task") -> Callable[[Draw], Draw]:
    """Put a figure into a section of the pages, ordered by ``place``; for use as a decorator.

    The function is called as ``draw(view, task)`` per training task of a study, as ``draw(view,
    unit)`` per unit of scores, or as ``draw(models)`` for the analyzed models of a training task
    or of an inspection. It returns None if there is nothing to show or to explain.
    """

    def add(draw: Draw) -> Draw:
        REGISTRY[draw] = place, section, per
        return draw

    return add


def draw_section(section: str, per: Scope, *subject: Any) -> Iterator[Figure]:
    """Draw the figures of one section that are registered for one scope, in order."""
    _import_figures()
    for draw in sorted(REGISTRY, key=lambda draw: REGISTRY[draw][0]):
        if REGISTRY[draw][1:] == (section, per):
            figure = draw(*subject)
            if figure is not None:
                yield figure


@cache
def _import_figures() -> None:
    """Import the files of this folder, and the ``figures.py`` or ``figures/`` of each analysis."""
    folders = [package.name for package in pkgutil.iter_modules(analyses.__path__) if package.ispkg]
    for name in (__name__, *(f"{analyses.__name__}.{folder}.figures" for folder in folders)):
        if find_spec(name) is not None:
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                importlib.import_module(f"{name}.{module.name}")
