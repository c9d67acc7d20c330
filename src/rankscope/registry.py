"""The registry: it finds every part of Rankscope in the core, an extension or another package.

A part is a class with a ``name`` of its own, derived from its kind: a scorer, a method, an
analysis. Or it is an object of its kind: a figure, a section, a named task. The core's parts of a
kind are the files of one folder; an extension is a folder of ``rankscope/extensions``. Another
package names its module in its ``pyproject.toml``::

    [project.entry-points.rankscope]
    anything = "its_module"

Modules of extensions and packages are loaded with every study file, so they load neither torch, nor
records, nor ``config.study``. Their parts are defined in them or in modules below them. Their files
``figures`` and ``serving`` are loaded for pages, ``verbs`` for the command line, ``rows`` before
anything trains, ``init_from`` and ``export_patch`` for these options.
"""

import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

from rankscope.errors import UserError, reading

EXTENSIONS = f"{__package__}.extensions"
_Part = TypeVar("_Part")


def files_of(package: ModuleType) -> Iterator[ModuleType]:
    """Import the modules of a package's folder, by name."""
    for file in pkgutil.iter_modules(getattr(package, "__path__", ())):
        yield import_module(f"{package.__name__}.{file.name}")


@cache
def extensions() -> tuple[ModuleType, ...]:
    """Import the modules of extensions, then of other packages.

    Raises UserError: one cannot be loaded.
    """
    own = files_of(import_module(EXTENSIONS)) if find_spec(EXTENSIONS) else ()
    others = []
    for entry in entry_points(group="rankscope"):
        place = f"the entry point {entry.name!r} = {entry.value!r}"
        with reading(place, "a module that can be imported", do="uninstall its package"):
            others.append(entry.load())
    return (*own, *others)


@cache
def parts(kind: type[_Part], folder: str = "") -> dict[str, type[_Part]]:
    """Return the parts of a kind by name, those of the core's folder first.

    Raises UserError: two parts have one name.
    """
    found: dict[str, type[_Part]] = {}
    modules = [*files_of(import_module(folder))] if folder else []
    for module in (*modules, *extensions()):
        for value in vars(module).values():
            is_part = isinstance(value, type) and issubclass(value, kind) and "name" in vars(value)
            if is_part and f"{value.__module__}.".startswith(f"{module.__name__}."):
                other = found.setdefault(value.name, value)
                if other is not value:
                    places = f"in {other.__module__} and {value.__module__}"
                    part = f"{kind.__name__.removesuffix('Kind')} {value.name!r}"
                    raise UserError(part, places, "one of each name")
    return found


def objects(kind: type[_Part], modules: Iterable[ModuleType] | None = None) -> list[_Part]:
    """Return the objects of a kind in modules, by default those of extensions, each once."""
    modules = extensions() if modules is None else modules
    found = (value for module in modules for value in vars(module).values())
    return list({id(value): value for value in found if isinstance(value, kind)}.values())


def extension_files(name: str) -> Iterator[ModuleType]:
    """Yield the file of this name in each extension and package that has one."""
    for module in extensions():
        file = f"{module.__name__}.{name}"
        if hasattr(module, "__path__") and find_spec(file):
            with reading(file, "a module that can be imported"):
                loaded = import_module(file)
            yield loaded


def extension_file(name: str, extension: str, option: str) -> ModuleType:
    """Return the first such file, which an option needs. Raises UserError: its extension is
    missing."""
    for module in extension_files(name):
        return module
    raise UserError(option, expected=f"{extension!r}, an extension that is not there")


def by_name(kind: str, named: Iterable[tuple[str, _Part]]) -> dict[str, _Part]:
    """Return objects by their names. Raises UserError: two have one name."""
    found: dict[str, _Part] = {}
    for name, part in named:
        if found.setdefault(name, part) is not part:
            raise UserError(f"{kind} {name!r}", "two of this name", "one", "rename yours")
    return found
