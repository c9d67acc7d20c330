"""The ``rankscope`` command: options that several verbs share, exit codes, entry point."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument, Option

from rankscope.cli.terminal import print_message
from rankscope.errors import RankscopeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[Path, Argument(metavar="FILE.yaml", help="The study file.")]
StudyFolder = Annotated[Path, Argument(metavar="DIR", help="The folder of a study.")]
Overrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a value, such as train.epochs=1."),
]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]

BAD_INPUT = 2
SOME_FAILED = 3
INTEGRITY = 4
INTERRUPTED = 130
WAITING_LOOPS = 1_000
"""How often a waiting thread polls before it sleeps; LOG.md has the cost of other values."""

UNUSABLE_PATH = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    }
)
"""Errors of the file system that the user can fix with another path; they are not bugs."""


def print_version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"rankscope {version('rankscope')}\n")
        raise typer.Exit


@app.callback()
def rankscope(
    show_version: Annotated[
        bool,
        Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """How much LoRA rank is enough on my model and my data, and what does it cost?

    Example: rankscope quickstart --out studies/pocket
    """


def exit_code_of(call: Callable[[], Any]) -> int:
    """Run a verb and return its exit code.

    Errors that the user can fix print one message. Any other exception is a bug and passes
    through, which ends the process with code 1.
    """
    try:
        call()
    except RankscopeError as error:
        print_message(f"error: {error}", "red")
        return error.exit_code
    except OSError as error:
        if error.errno not in UNUSABLE_PATH or error.filename is None:
            raise
        print_message(f"error: {error.filename}: {error.strerror}; give another path", "red")
        return BAD_INPUT
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer's code for Ctrl-C
            print_message("interrupted; give the same command again to continue")
        return ending.code if isinstance(ending.code, int) else 1
    return 0


def limit_busy_waiting() -> None:
    """Let threads of GNU OpenMP wait for each other in a short loop, then sleep.

    By default the loop is long, and on a machine with other work it takes the very core that it
    waits for. Threads that sleep at once wake too late if products are small. OpenMP reads the
    variable when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(WAITING_LOOPS))


def main() -> NoReturn:
    """Entry point of the ``rankscope`` command."""
    limit_busy_waiting()
    # PEFT imports bitsandbytes if it is installed, which then warns on every command about a
    # kernel that no CPU run needs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    sys.exit(exit_code_of(app))
