"""The command line: parse, call, print. Verbs appear in ``--help`` in the order of import."""

from rankscope.cli import (  # noqa: I001
    setup_verbs,  # noqa: F401
    study_verbs,  # noqa: F401
    output_verbs,  # noqa: F401
    model_verbs,  # noqa: F401
)
from rankscope.cli.application import app, main, run_command_line
from rankscope.registry import extension_files

list(extension_files("verbs"))

__all__ = ["app", "main", "run_command_line"]
