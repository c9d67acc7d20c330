"""The classes that the files of an extension folder define."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any


def subclasses_in(folder: str, kind: type[Any]) -> Iterator[Any]:
    """Subclasses of ``kind`` that the files of a package define, file by file."""
    for file in pkgutil.iter_modules(import_module(folder).__path__):
        module = import_module(f"{folder}.{file.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, kind) and value is not kind:
                yield value
