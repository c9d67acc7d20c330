"""Formats of an exported adapter besides PEFT's, one file each.

``rankscope export --format name`` calls ``write`` of the file name.py in this folder.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rankscope.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rankscope.models.lora import Adapter
    from rankscope.records import StudyRecords
    from rankscope.report.use_it import BaseSource, UseStep

__all__ = ["PEFT", "check_format", "format_names", "get_format"]

PEFT = "peft"  # The format of a study's own adapters, which needs no file here


class _Format(Protocol):
    whole_model: str  # Command that converts the folder of a whole model, with its place as {}

    def write(
        self,
        adapter: "Adapter",
        out: Path,
        config: "PretrainedConfig",
        study: "StudyRecords",
        base: "BaseSource",
    ) -> "list[UseStep]":
        """Write an adapter's files into ``out``; how to use them.

        ``adapter`` has the name of its training task, ``config`` is the base's. Raises UserError:
        the format cannot hold the adapter, or does not know the base's architecture.
        """


def format_names() -> list[str]:
    return sorted([PEFT, *(module.name for module in pkgutil.iter_modules(__path__))])


def get_format(name: str) -> _Format:
    found: _Format = import_module(f"{__name__}.{name}")  # type: ignore[assignment]
    return found


def check_format(name: str, *, whole: str = "") -> None:
    """Raise UserError for a format that is not known, or that takes no ``whole`` model."""
    if name not in format_names():
        raise UserError("--format", repr(name), f"one of {', '.join(format_names())}")
    if whole and name != PEFT:
        command = get_format(name).whole_model.format("FOLDER")
        do = f"export it without --format, then convert that folder: {command}"
        raise UserError(f"--format {name}", whole, "an adapter", do)
