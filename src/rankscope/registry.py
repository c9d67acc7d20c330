"""The classes that the files of an extension folder define."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any


def subclasses_in(folder: str, kind: type[Any]) -> Iterator[Any]:
    """Subclasses of ``kind`` that the files of a package define, file by file; without the package
    none."""
    try:
        package = import_module(folder)
    except ModuleNotFoundError as error:
        if not folder.startswith(str(error.name)):  # a package of others
            raise
        return
    for file in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{folder}.{file.name}")
        for value in vars(module).values():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, kind) and value is not kind:
                yield value
