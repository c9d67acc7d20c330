"""Formats of an exported adapter besides PEFT's, one file each.

``rankscope export --format name`` takes the class ``Name`` of the file name.py in this folder. Its
``whole_model`` is the command that converts a whole model, with {} in place of the model's folder;
``write`` writes an adapter's files and returns how to use them. The adapter has
the name of its training task.
"""

import pkgutil
from importlib import import_module
from typing import Any

from rankscope.errors import UserError

PEFT = "peft"  # The format of a study's own adapters, which needs no file here


def format_names() -> list[str]:
    return sorted([PEFT, *(module.name for module in pkgutil.iter_modules(__path__))])


def get_format(name: str) -> Any:
    return getattr(import_module(f"{__name__}.{name}"), name.capitalize())()


def check_format(name: str, *, whole: str = "") -> None:
    """Raise UserError for a format that is not known, or that takes no ``whole`` model."""
    if name not in format_names():
        raise UserError("--format", repr(name), f"one of {', '.join(format_names())}")
    if whole and name != PEFT:
        command = get_format(name).whole_model.format("FOLDER")
        do = f"export it without --format, then convert that folder: {command}"
        raise UserError(f"--format {name}", whole, "an adapter", do)
