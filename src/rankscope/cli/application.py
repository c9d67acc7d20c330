"""The ``rankscope`` command: how verbs are registered, options that several share, exit codes."""

import errno
import functools
import glob
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from rankscope.cli.terminal import Reply, discard, print_json, print_message, protect_terminal
from rankscope.errors import (
    BAD_INPUT,
    BUG,
    INTERRUPTED,
    STOP_SIGNALS,
    Interrupted,
    RankscopeError,
    UserError,
    address_space_shortage,
    did_you_mean,
    is_panic,
    shortage_behind,
    take_blas_memory,
)
from rankscope.filesystem import user_path
from rankscope.formatting import join_names
from rankscope.run.workers.starter import become_worker

_VERBS = {
    "A study": ("quickstart", "init", "check", "plan", "run", "status", "stop"),
    "Its results": ("report", "open", "export", "compare", "verify"),
}
"""Verbs of a study in the order of ``--help``; the others need none."""
_MEANT = {"train": "run", "evaluate": "eval", "merge": "export --merge", "convert": "export"}
"""Verbs of other programs."""


class _Verbs(TyperGroup):
    """The verbs, in groups; an unknown one is answered with the likely one."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: verb for name, verb in self.commands.items() if not verb.hidden}
        others = tuple(name for name in shown if name not in sum(_VERBS.values(), ()))
        for title, names in {**_VERBS, "Without a study": others}.items():
            with formatter.section(title):
                rows = [(name, shown[name].get_short_help_str(80)) for name in names]
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            meant = _MEANT.get(name)
            hint = f"did you mean {meant!r}?" if meant else did_you_mean(name, self.commands)
            told = f"unknown command {name!r}. {hint.capitalize() or 'See: rankscope -h'}"
            raise UserError("rankscope", f"no command {name!r}", "", hint, (), told)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _study_folders(incomplete: str) -> list[str]:
    """Complete a path to folders of studies, by up to two names."""
    start, found = glob.escape(incomplete), list[str]()
    for below in ("*", "*/*"):
        found += glob.glob(f"{start}{below}/ledger.sqlite")  # noqa: PTH207 (a path may be absolute)
    return sorted(str(Path(path).parent) for path in found)


StudyFile = Annotated[Path, Argument(metavar="FILE.yaml", help="The study file.")]
STUDY_FILE = Path("study.yaml")  # The file that ``init`` writes, and that other verbs read
StudyFolder = Annotated[
    Path,
    Argument(metavar="DIR", help="The folder of a study.", autocompletion=_study_folders),
]
Overrides = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a value, such as train.epochs=1."),
]


def _allow_task_code(allow: bool) -> bool:
    """Let this process and its workers run code that a task names."""
    if allow:
        os.environ["RANKSCOPE_TRUST_TASK_CODE"] = "1"
    return allow


TrustTaskCode = Annotated[
    bool,
    Option(
        "--trust-task-code",
        callback=_allow_task_code,
        help="Run Python code that scorers and tasks name.",
    ),
]


def by_commas(texts: Sequence[str]) -> list[str]:
    """Return the words of options that take several, by commas or by repeating the option."""
    return [word for text in texts for part in text.split(",") if (word := part.strip())]


AsJson = Annotated[bool, Option("--json", help="Print one JSON document instead of text.")]

UsageError: Any = typer.BadParameter.__base__
"""The error for wrong words on the command line, of the click inside typer."""

WAITING_LOOPS = 1_000
"""Number of polls by a waiting thread before it sleeps; LOG.md has the cost of other values."""

INTERRUPTED_EARLY = ("this command", "a request to stop", "", "give the same command again")

UNUSABLE_PATH = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    }
)
"""Errors of the file system that the user can fix with another path; they are not bugs."""


def verb(
    name: str, first_line: str = "", *, hidden: bool = False
) -> Callable[[Callable[..., Reply]], Any]:
    """Register a verb under ``name``; for use as a decorator.

    ``--json`` is added to its options, and the answer is printed as JSON or as text. ``first_line``
    is printed to standard error before anything heavy is imported; ``{option}`` becomes its value.
    """

    def register(function: Callable[..., Reply]) -> Callable[..., Reply]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def command(*, as_json: bool, **options: Any) -> None:
            if first_line:
                names = {n: join_names(map(str, v)) for n, v in options.items() if type(v) is list}
                print_message(first_line.format_map(options | names))
                if shortage := address_space_shortage():
                    raise shortage
            take_blas_memory()
            answer = function(**{name: _with_paths(value) for name, value in options.items()})
            if as_json:
                print_json(answer.data)
            else:
                answer.show()
            if answer.exit_code:
                raise typer.Exit(answer.exit_code)

        as_json = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson
        )
        parameters = [*signature.parameters.values(), as_json]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {**function.__annotations__, "as_json": AsJson}
        app.command(name, hidden=hidden)(command)
        return function

    return register


def _with_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_paths(one) for one in value]
    return user_path(value) if isinstance(value, Path) else value


def check_study(folder: Path) -> None:
    """Refuse a folder without a study before anything heavy is imported."""
    from rankscope.store import Ledger

    Ledger.open(folder, write=False).close()


def _print_version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"rankscope {version('rankscope')}\n")
        raise typer.Exit


@app.callback()
def rankscope(
    show_version: Annotated[
        bool,
        Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """How much LoRA rank is enough on my model and my data, and what does it cost?

    Example: rankscope quickstart --out studies/pocket
    """


def _print_error(error: RankscopeError, as_json: bool) -> None:
    if as_json:
        with suppress(OSError):  # such as a full disk under a redirected output
            print_json({"error": error.description()})
    print_message(f"error: {error}", "red")


def run_command_line(
    words: Sequence[str] | Callable[[], Sequence[str]],
    report: Callable[[RankscopeError, bool], None] = _print_error,
) -> int:
    """Run ``rankscope WORDS`` and return its exit code; a function of words may fail like a verb.

    Errors that the user can fix print one message. Any other exception is a bug and passes through,
    which ends the process with code 1. With ``--json`` an error is also a JSON document.
    """
    as_json = False
    try:
        words = words() if callable(words) else words
        as_json = "--json" in words
        code = app(list(words), prog_name="rankscope", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return BAD_INPUT
        known: RankscopeError = _usage_error(error)
    except typer.Abort:
        known = Interrupted(*INTERRUPTED_EARLY)
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if (recognized := _known_error(error)) is None:
            if as_json:
                bug = {"kind": "bug", "message": repr(error)[:1000], "exit_code": BUG}
                print_json({"error": bug})
            raise
        known = recognized
    else:
        if code != INTERRUPTED:
            return code or 0
        known = Interrupted(*INTERRUPTED_EARLY)
    report(known, as_json)
    return known.exit_code


def _usage_error(error: Any) -> UserError:
    """Return a fault of the command line as a sentence, with the help or the key that it needs."""
    found = str(error.format_message()).partition(", unable to")[0].rstrip(".")
    if error.ctx is None:
        return UserError(
            "rankscope", found, "", "see: rankscope -h", (), f"{found}. See: rankscope -h"
        )
    path, do = error.ctx.command_path, f"see: {error.ctx.command_path} -h"
    told = f"{path}: {found.replace('Input should', 'it must')}"
    kind, parameter = type(error).__name__, getattr(error, "param", None)
    if kind == "NoSuchOption":
        from rankscope.config.loader import places_of_key

        told = f"{path} has no option {error.option_name}"
        if places := places_of_key(error.option_name.lstrip("-").replace("-", "_")):
            do = f"set it in the study file, or with: --set {places[0]}=VALUE"
        elif error.possibilities:
            do = f"did you mean {error.possibilities[0]}?"
    elif kind == "MissingParameter" and parameter is not None:
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
        told = f"{path} needs {name}: {str(parameter.help).rstrip('.')}"
        example = str(error.ctx.command.help).partition("Example: ")[2].partition("\n")[0]
        do = f"for example: {example}" if example else do
    usage = error.ctx.get_usage().removeprefix("Usage: ")
    return UserError(path, found, usage, do, (), f"{told}. {do[0].upper()}{do[1:]}")


def _known_error(error: BaseException) -> RankscopeError | None:
    """Return the error that the user can act on; None for a bug."""
    if shortage := shortage_behind(error):
        return shortage
    if isinstance(error, RankscopeError):
        return error
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and error.filename is not None:
        return UserError(error.filename, f"a fault ({error.strerror})", do="give another path")
    return address_space_shortage(error)


def _limit_busy_waiting() -> None:
    """Let threads of GNU OpenMP wait for each other in a short loop, then sleep.

    By default the loop is long. On a machine with other work it takes the very core that it waits
    for. Threads that sleep at once wake too late if products are small. OpenMP reads the variable
    when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(WAITING_LOOPS))


def _stop_like_interrupt() -> None:
    """Let ``STOP_SIGNALS`` end any command like Ctrl-C, unless the process ignores them."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _hide_hub_kernels() -> None:
    """Let libraries see no package ``kernels``, unless ``USE_HUB_KERNELS`` asks for it.

    Transformers (on a load) and bitsandbytes (on import) would download compiled code from the hub
    with that package, and run it.
    """
    if os.environ.setdefault("USE_HUB_KERNELS", "NO").upper() not in ("1", "ON", "YES", "TRUE"):
        sys.modules["kernels"] = None  # type: ignore[assignment]  # as if it were not installed


def main(*, is_starter: bool = False) -> NoReturn:
    """Entry point of the ``rankscope`` command, and of the process that forks workers."""
    try:
        _stop_like_interrupt()
        _limit_busy_waiting()
        _hide_hub_kernels()
        protect_terminal()
        # PEFT imports bitsandbytes if it is installed, which then warns on every command about a
        # kernel that no CPU run needs.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        code = run_command_line(become_worker if is_starter else sys.argv[1:])
    except KeyboardInterrupt:  # before the verb began, or after it ended
        print_message(f"error: {Interrupted(*INTERRUPTED_EARLY)}", "red")
        code = INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and replace the code
            discard(stream)
    if is_starter:  # in a worker: to take the imports apart would copy the starter's memory
        os._exit(code)
    sys.exit(code)
