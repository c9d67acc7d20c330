"""Formats of an exported adapter besides PEFT's, for ``rankscope export --format NAME``."""

from typing import Any, ClassVar

from rankscope.errors import UserError
from rankscope.registry import parts

PEFT = "peft"  # The format of a study's own adapters


class Format:
    name: ClassVar[str]
    whole_model: ClassVar[str]  # Command that converts a whole model; {} stands for its folder

    def write(self, *adapter: Any) -> list[Any]:
        """Write an adapter, and return how to use its files, as UseSteps.

        Raises UserError: the format cannot hold it.

        Args:
            adapter: the Adapter, named after its training task, the folder, the PretrainedConfig,
                the StudyRecords and the BaseSource.
        """
        raise NotImplementedError


def _format_names() -> list[str]:
    return sorted([PEFT, *parts(Format)])


def get_format(name: str) -> Format:
    kinds: dict[str, type[Format]] = parts(Format)
    return kinds[name]()


def check_format(name: str, *, whole: str = "") -> None:
    """Raise UserError for an unknown format, or for a ``whole`` model in one for adapters."""
    if name not in _format_names():
        raise UserError("--format", repr(name), f"one of {', '.join(_format_names())}")
    if whole and name != PEFT:
        command = get_format(name).whole_model.format("FOLDER")
        do = f"export it without --format, then convert that folder: {command}"
        raise UserError(f"--format {name}", whole, "an adapter", do)
