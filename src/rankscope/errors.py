"""Errors that a user can act on, each with the exit code of the command line.

A message names the place, what was found, what was expected and what to do. Any other exception is
a bug in Rankscope. docs/commands.md says what a script can do about each code.
"""

import copyreg
import difflib
import errno
import math
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rankscope.formatting import byte_size, shortened_lines

OK = 0
BUG = 1
BAD_INPUT = 2
UNFINISHED = 3
INTEGRITY = 4
INTERRUPTED = 130

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals of Ctrl-C, of a scheduler or of a closed terminal: the command ends with INTERRUPTED."""
MAX_FAULTS = 5  # Most faults of one record that a message lists


class RankscopeError(Exception):
    """Base of every error that Rankscope raises on purpose.

    It says where, what was found, what was expected and what to do. Parts that do not apply are
    empty.

    Args:
        where: file and line, option, key of the study file, task or folder.
        found: the thing found there, as a noun phrase.
        expected: a thing that could have been used, as a noun phrase.
        do: how to continue, in the imperative.
        faults: several faults of one thing, each an error or a sentence; ``found`` counts them.
        sentence: the message in words of its own; ``{where}`` is the place.
    """

    exit_code = BUG

    def __init__(
        self,
        where: object = "",
        found: str = "",
        expected: str = "",
        do: str = "",
        faults: Sequence["RankscopeError | str"] = (),
        sentence: str = "",
    ) -> None:
        super().__init__(where, found, expected, do, faults, sentence)
        self.where, self.found, self.expected, self.do = str(where), found, expected, do
        self.faults, self.sentence = tuple(faults), sentence

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild the error without ``__init__``, whose parameters differ between the types."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        """Write ``where: found X, expected Y; do Z``, with faults on their own lines before ``do``.

        Long lines are cut in their middle.
        """
        if self.sentence:
            return shortened_lines(self.sentence.replace("{where}", self.where))
        wanted = f"expected {self.expected}" if self.expected else ""
        met = ", ".join(part for part in (self.found and f"found {self.found}", wanted) if part)
        text = ": ".join(part for part in (self.where, met) if part)
        if not self.faults:
            return shortened_lines("; ".join(part for part in (text, self.do) if part))
        lines = [f"{text}:", *(f"  {fault}" for fault in self.faults), self.do]
        return shortened_lines("\n".join(line for line in lines if line))

    def description(self) -> dict[str, object]:
        """Return the error for ``--json``; an empty part is None. The first of several faults
        counts."""
        first = self.faults[0] if self.faults else None
        one = first if isinstance(first, RankscopeError) else self
        names = ("where", "found", "expected", "do")
        parts = {name: getattr(one, name) or getattr(self, name) or None for name in names}
        kind = type(self).__name__
        return {"kind": kind, "message": str(self), **parts, "exit_code": self.exit_code}


class UserError(RankscopeError):
    """A study file, data row, model folder or argument cannot be used as it is (exit code 2)."""

    exit_code = BAD_INPUT


class IntegrityError(RankscopeError):
    """A stored artifact is not what was written: missing, altered or not finite (exit code 4)."""

    exit_code = INTEGRITY


class NotFiniteError(IntegrityError):
    """A model's log-probabilities are not finite, so it cannot be scored (exit code 4)."""


class StudyLocked(UserError):
    """Another process is running this study (exit code 2)."""


class DiskFull(RankscopeError):
    """No space to write, or the disk reports an error; the previous state is kept (exit code 3)."""

    exit_code = UNFINISHED


class OutOfMemory(RankscopeError):
    """Memory ran out where no smaller piece of work can be tried (exit code 3)."""

    exit_code = UNFINISHED


class BaseFailed(RankscopeError):
    """The workers that were to score the base kept failing (exit code 3)."""

    exit_code = UNFINISHED


class Interrupted(RankscopeError):
    """A stop was requested; the same command continues (exit code 130)."""

    exit_code = INTERRUPTED


@contextmanager
def reading(
    place: object, expected: str, refuse: type[RankscopeError] = UserError, do: str = ""
) -> Iterator[None]:
    """Raise one message for any error that a library raises on data from outside.

    Wrap only the library's call: a bug of Rankscope inside would read as a fault of the data.
    Rankscope's own errors and a lack of memory pass through. Foreign code that calls ``sys.exit``
    does not end the command.
    """
    try:
        yield
    except (RankscopeError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise refuse(place, f"a fault ({reason_of(error)})", expected, do) from error


@contextmanager
def installed(where: object, extra: str) -> Iterator[None]:
    """Raise UserError if an import inside fails, for a package of one of Rankscope's extras."""
    try:
        yield
    except ImportError as error:
        found, expected = f"no package {error.name}", "it to be installed"
        if not isinstance(error, ModuleNotFoundError):
            found, expected = f"an import that fails ({first_line(error)})", "fitting versions"
        do = f"install it with pip install 'rankscope[{extra}]'"
        raise UserError(where, found, expected, do) from error


def reason_of(error: BaseException) -> str:
    """Say in one line what is wrong with data, from the error of a library."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8 text"
    if isinstance(error, UnicodeEncodeError):
        return "a lone surrogate (\\ud800 to \\udfff), which is not a character"
    if isinstance(error, KeyError):
        return f"there is no {first_line(error)}"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "an integer of more than 4,300 digits"
    faults = getattr(error, "errors", None)  # of Pydantic
    if callable(faults):
        shown = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in faults()
        ]
        more = ["..."] if len(shown) > MAX_FAULTS else []
        return "; ".join([fault.removeprefix(": ") for fault in shown[:MAX_FAULTS]] + more)
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, and the next if it ends in a colon.

    An empty text is replaced by the error's type.
    """
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``did you mean 'rank'?`` if a known word is similar, else an empty text."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.55)
    return f"did you mean {close[0]!r}?" if close else ""


# --- out of disk and out of memory: how libraries report it, and the one message for each ---------
# Libraries wrap such errors in others of their own: weights that cannot be read because memory ran
# out are intact. So the causes of an error are searched, not the error alone.

CONTINUES = "the same command continues"
AGAIN = "then give the same command again: what was finished is kept"

REACHED_LIMITS = {
    errno.ENOSPC: ("the disk full", "make room there"),
    errno.EDQUOT: ("the disk quota used up", "make room there"),
    errno.EFBIG: ("the limit for one file reached", "raise the limit ('ulimit -f')"),
    errno.EMFILE: ("the limit of open files reached", "raise the limit ('ulimit -n')"),
}
"""Maps an error number to what was found, and what to do."""
FAILING = ("a disk that fails", "check the disk")
FULL_OR_FAILING = ("a disk that is full or fails", "make room there, or check the disk")

MIN_ADDRESS_SPACE = 300 * 10**6
"""Bytes needed at the start; the libraries of most commands take several times that."""

SQLITE_FAILING = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""Codes of SQLite for a file that it could not write, for any reason but a full disk."""

SQLITE_NO_MEMORY = (sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_SHMMAP)

RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)")
"""Matches an error of the operating system, which safetensors and tokenizers report as text."""

OUT_OF_MEMORY = (
    "out of memory",  # CUDA, cuBLAS, MPS
    "not enough memory",  # torch's CPU allocator on Windows
    "can't allocate memory",  # and elsewhere
    "cannot allocate memory",  # mapping a file of weights
    "failed to map segment",  # loading a library
    "std::bad_alloc",
    "can't start new thread",
    "failed to launch worker thread",  # Arrow
    "pyobject pointer is null",  # a panic in Rust, to which Python gave no new object
)
"""Parts of the messages of errors that have no type of their own."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _os_error_number(error: BaseException) -> int | None:
    """Return the operating system's number of an error, also if only its text has it."""
    if isinstance(error, shutil.Error):  # of a whole folder: errors as text
        match = re.search(r"\[Errno (\d+)\]", str(error))
        return int(match[1]) if match else None
    if isinstance(error, OSError):
        return error.errno
    match = None if isinstance(error, RankscopeError) else RUST_OS_ERROR.search(str(error))
    return int(match[1] or match[2]) if match else None


def _disk_fault(error: BaseException) -> tuple[str, str] | None:
    """Return what was found and what to do, if the disk refused a write."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        if code == sqlite3.SQLITE_FULL:
            return REACHED_LIMITS[errno.ENOSPC]
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as limit:  # SQLite has no word for too many open files
            return REACHED_LIMITS.get(limit.errno or 0)
        return FULL_OR_FAILING if code in SQLITE_FAILING else None
    number = _os_error_number(error)
    return FAILING if number == errno.EIO else REACHED_LIMITS.get(number or 0)


def _is_memory_fault(error: BaseException) -> bool:
    """Whether this error itself, apart from its causes, means that memory ran out."""
    if isinstance(error, MemoryError) or _os_error_number(error) == errno.ENOMEM:
        return True
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) in SQLITE_NO_MEMORY
    is_of_arrow = type(error).__module__.startswith("pyarrow")
    if not (is_of_arrow or is_panic(error) or isinstance(error, RuntimeError | ImportError)):
        return False
    text = str(error).lower()
    return any(part in text for part in OUT_OF_MEMORY)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked, as in safetensors: such errors are no ``Exception``."""
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by an error or by its causes."""
    return any(isinstance(e, OutOfMemory) or _is_memory_fault(e) for e in _causes(error))


def out_of_memory_message(error: BaseException) -> str:
    """Return ``out of memory: `` and the first line of the error behind it."""
    faults = [cause for cause in _causes(error) if _is_memory_fault(cause)]
    text = first_line(faults[0] if faults else error)
    return f"out of memory: {'no details' if text == 'MemoryError' else text}"


def shortage_behind(
    error: BaseException, where: Path | str | None = None, needed: str = "", do: str = ""
) -> RankscopeError | None:
    """Return the error to raise in place of one that means out of disk or out of memory, else None.

    Args:
        error: any error; its causes are searched for a shortage, too.
        where: the place of the shortage. A file elsewhere that the error names takes its place.
        needed: bytes of the intended write, as text.
        do: advice about too little memory, instead of the general advice.
    """
    if isinstance(error, Interrupted):
        return None
    for cause in _causes(error):
        if isinstance(cause, DiskFull | OutOfMemory):
            return cause
        if _is_memory_fault(cause):
            free = f"{byte_size(free_memory_bytes())} free"
            place = f"{where or 'this command'}: {out_of_memory_message(cause)}"
            do = f"{do or 'close other programs or raise the limit'}, {AGAIN}"
            return OutOfMemory(place, free, "more", do)
        if fault := _disk_fault(cause):
            return _disk_error(cause, fault, where, needed)
    return None


def _disk_error(
    error: BaseException, fault: tuple[str, str], where: Path | str | None, needed: str
) -> DiskFull:
    found, do = fault
    named = getattr(error, "filename", None)
    name = os.fsdecode(named) if isinstance(named, str | bytes) else ""
    place = Path(name) if name and not (where and name.startswith(str(where))) else where
    if isinstance(place, Path) and "open files" not in found:
        found += _free_disk_space(place)
    number = _os_error_number(error)
    reason = first_line(error) if number is None else os.strerror(number)
    expected = f"room for {needed or 'more'}"
    return DiskFull(place or "writing", f"{found} ({reason})", expected, f"{do}, {AGAIN}")


def _free_disk_space(place: Path) -> str:
    """Say how much is free on the disk of a file or folder, which need not exist yet."""
    for folder in (place, *place.absolute().parents):
        with suppress(OSError, ValueError):
            return f", with {shutil.disk_usage(folder).free:,} bytes free"
    return ""


def free_memory_bytes() -> int:
    """Return the host's memory that this process may still take, within its limits."""
    import psutil  # most commands need none of it

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # no limit: no such file, or it says "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(cached["inactive_file"]))
    return int(max(0, min(free, _free_address_space())))


def _free_address_space() -> float:
    """Return the free bytes of this process's address space ('ulimit -v'); infinite if
    unlimited."""
    import resource  # not on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    import psutil

    return limit - int(psutil.Process().memory_info().vms)


def address_space_shortage(error: BaseException | None = None) -> OutOfMemory | None:
    """Return an error if too little address space is left for libraries.

    Without enough of it they fail with any message, or abort.

    ``error`` is an unknown one that was met.
    """
    free = _free_address_space()
    if free >= MIN_ADDRESS_SPACE:
        return None
    reason = "" if error is None else f" ({type(error).__name__}: {first_line(error)})"
    return OutOfMemory(
        f"this command: out of memory{reason}",
        f"{byte_size(max(0, free))} of address space left",
        f"at least {byte_size(MIN_ADDRESS_SPACE)}",
        f"raise the limit ('ulimit -v'), {AGAIN}",
    )


def take_blas_memory() -> None:
    """Let NumPy's OpenBLAS allocate its 32 MB now, if address space is limited.

    It allocates them at its first product, and calls ``exit(1)`` if it cannot.
    """
    if MIN_ADDRESS_SPACE <= _free_address_space() < math.inf:
        import numpy as np

        size = 512  # all of its threads get a part
        _ = np.ones((size, size)) @ np.ones((size, size))


@contextmanager
def reporting_shortages(
    where: Path | str, needed: Callable[[], str] = lambda: "", do: str = ""
) -> Iterator[None]:
    """Raise DiskFull or OutOfMemory for every library's error that means it.

    Arguments are those of :func:`shortage_behind`; ``needed`` is called after the fault.
    """
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        known = shortage_behind(error, where, needed(), do)
        if known is None or known is error:
            raise
        raise known from error
