"""The command line: parse, call, print. Verbs appear in ``--help`` in the order of import."""

from contextlib import suppress  # noqa: I001

from rankscope.cli import (
    setup_verbs,  # noqa: F401
    study_verbs,  # noqa: F401
    output_verbs,  # noqa: F401
    model_verbs,  # noqa: F401
)
from rankscope.cli.application import app, main, run_command_line
from rankscope.errors import UserError
from rankscope.registry import extension_files

with suppress(UserError):  # A verb that reads a study refuses a broken package; help works
    list(extension_files("verbs"))

__all__ = ["app", "main", "run_command_line"]
