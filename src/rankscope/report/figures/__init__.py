"""The figures of the pages, one file each. A file registers its figure; no other file names it."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True, slots=True)
class Registered:
    section: str
    place: float
    per: Scope
    draw: Draw


REGISTRY: list[Registered] = []


def register(section: str, place: float, *, per: Scope = "task") -> Callable[[Draw], Draw]:
    """Put a figure into a section of the pages, ordered by ``place``; for use as a decorator.

    The function is called as ``draw(view, task)`` per training task of a study, as ``draw(view,
    unit)`` per unit of scores, or as ``draw(models)`` for the analyzed models of a training task
    or of an inspection. It returns None if there is nothing to show or to explain.
    """

    def add(draw: Draw) -> Draw:
        REGISTRY.append(Registered(section, place, per, draw))
        return draw

    return add


def draw_section(section: str, per: Scope, *subject: Any) -> Iterator[Figure]:
    """Draw the figures of one section that are registered for one scope, in order."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in sorted(REGISTRY, key=lambda entry: entry.place):
        if (entry.section, entry.per) == (section, per):
            figure = entry.draw(*subject)
            if figure is not None:
                yield figure
