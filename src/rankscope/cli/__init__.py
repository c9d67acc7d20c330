"""The command line: parse, call, print. Verbs appear in ``--help`` in the order of import."""

from rankscope.cli import setup_verbs, study_verbs, output_verbs, model_verbs  # noqa: F401, I001
from rankscope.cli.application import app, main, run_command_line

__all__ = ["app", "main", "run_command_line"]
