"""What verbs print to: results to standard output, everything else to standard error."""

import json
import sys

from rich.console import Console, RenderableType

out_console = Console()
err_console = Console(stderr=True)


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def say(text: str, style: str | None = None) -> None:
    """Plain text, as it is: no markup, and lines left whole, so that paths can be copied."""
    out_console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def tell(text: str, style: str | None = None) -> None:
    """The same on standard error: what is no result."""
    err_console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def show(result: RenderableType) -> None:
    """A table or another renderable."""
    out_console.print(result)
