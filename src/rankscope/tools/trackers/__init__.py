"""Experiment trackers, one file each: which runs it has, and how a run is written to it.

``rankscope track --to name`` takes the class ``Name`` of the file name.py in this folder.
"""

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

__all__ = ["RUN", "Scalar", "TrackedRun", "tracker_class", "tracker_names"]

Scalar = str | int | float | bool
RUN = "rankscope_run"  # Name of a run's id in its configuration or tags


@dataclass(frozen=True, slots=True)
class TrackedRun:
    id: str  # Of the trial within its study, a hyphen, and a hash of everything below
    name: str
    group: str  # The training task; empty for the base
    config: dict[str, Scalar]  # With "failure", if it failed
    history: tuple[tuple[int, dict[str, float]], ...]  # (optimizer step, values)
    created: str  # ISO 8601, UTC


class _Tracker(Protocol):
    """A project of a tracker. ``write`` completes a run last: one that was cut is redone."""

    project: str
    store: str  # Where its runs are, for people

    def __init__(self, project: str) -> None: ...

    def runs(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Id of every run that came from a study, without its hash if it is not complete, and how
        to delete it."""

    def write(self, run: TrackedRun) -> None:
        """Add a run."""


def tracker_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def tracker_class(name: str) -> type[_Tracker]:
    found: type[_Tracker] = getattr(import_module(f"{__name__}.{name}"), name.capitalize())
    return found
