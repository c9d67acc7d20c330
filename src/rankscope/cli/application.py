"""The ``rankscope`` command: its options that several verbs share, its exit codes, its entry."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from rankscope.cli.terminal import tell
from rankscope.errors import RankscopeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The study file.")]
StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as train.epochs=1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

BAD_INPUT = 2
SOME_FAILED = 3
INTEGRITY = 4
INTERRUPTED = 130
WAITING_LOOPS = 1_000
"""How often a waiting thread looks before it sleeps; what others cost is in LOG.md."""

REFUSED = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    }
)
"""What the file system says to a path that cannot be used: the user's to mend, not a bug."""


def print_version(asked: bool) -> None:
    """``--version`` answers and leaves."""
    if asked:
        sys.stdout.write(f"rankscope {version('rankscope')}\n")
        raise typer.Exit


@app.callback()
def rankscope(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """How much LoRA rank is enough on my model and my data, and what does it cost?

    Example: rankscope quickstart --out studies/pocket
    """


def exit_code_of(call: Callable[[], Any]) -> int:
    """Run a verb; errors a user can act on become one message and their exit code.

    Any other exception is a bug and passes through, which ends the process with code 1.
    """
    try:
        call()
    except RankscopeError as error:
        tell(f"error: {error}", "red")
        return error.exit_code
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        tell(f"error: {error.filename}: {error.strerror}; give another path", "red")
        return BAD_INPUT
    except KeyboardInterrupt:
        tell("interrupted; the same command continues")
        return INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


def wait_briefly() -> None:
    """Let OpenMP's threads (GNU's) wait for each other in a short loop, and then sleep.

    By default the loop is long: on a machine with other work it eats the very core it waits for.
    Asleep at once, they wake too late where products are small. Read when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(WAITING_LOOPS))


def main() -> NoReturn:
    """Entry point of the ``rankscope`` command."""
    wait_briefly()
    # PEFT imports bitsandbytes wherever it is installed, which then warns of a kernel that nothing
    # on a processor needs here, on every command.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    sys.exit(exit_code_of(app))
