"""The driver's side, or a node's: attempts to run ``rankscope work OUT UNIT`` as a child process.

A killed worker is started again. The module also passes a worker's error on to the driver.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import rankscope.errors as errors
from rankscope.errors import OK, Interrupted, RankscopeError
from rankscope.filesystem import replace_text
from rankscope.run.workers.starter import DRIVER, ForkedWorker, Starter

POLL_SECONDS = 0.2
SEAL = "sealed.sha256"
"""File that marks a unit as ended; its closed ledger holds the hashes of all artifacts."""
KILLED_FOR_MEMORY = "RANKSCOPE_KILLED_FOR_MEMORY"
"""Environment variable of a worker whose predecessors the system killed for lack of memory."""
IS_SMALLER = "the next attempt is smaller"
"""Part of a worker's last message, if it ran out of memory and stored how to need less."""
MAX_ATTEMPTS = 3
"""Number of kills, or of the worker's own errors, after which a unit is given up."""
MAX_MEMORY_KILLS = 10
"""Number of workers that lack of memory may end before a unit is given up. The system kills them,
or a shard runs out of memory. The next worker makes its passes or its group smaller, and cuts a
base that each of several devices held whole. After kills by the system it does so from the second
one on, and never if the unit is smaller already. Nothing else makes the base smaller: its next
worker ends with OutOfMemory."""
MESSAGES = "worker.log"
VMSTAT = Path("/proc/vmstat")
LAST_LINES = 4  # Lines of a worker that ended without a message, as of a traceback
WORKER = ("-P", "-c", "from rankscope.cli import main; main()")
"""Python's arguments; -P: a file in the current folder must not hide a standard module."""

ERROR = "error.json"
"""File of the error that a worker met, with its fields; missing after a kill or on a full disk."""
WORKER_ERRORS: dict[int, type[RankscopeError]] = {
    kind.exit_code: kind
    for kind in (errors.UserError, errors.IntegrityError, errors.Interrupted, errors.DiskFull)
}
"""Error of a worker that could not store it, by exit code. Such an error concerns the whole study;
any other code means that only the unit failed."""
STUDY_CODES = frozenset(WORKER_ERRORS)
Worker = subprocess.Popen[bytes] | ForkedWorker


class WorkerFailed(Exception):
    """A unit that did not end in any attempt; ``status`` is that of its untrained trials."""

    def __init__(self, reason: str, status: Literal["oom", "failed"] = "failed") -> None:
        super().__init__(reason)
        self.status = status


def is_sealed(folder: Path) -> bool:
    return (folder / SEAL).is_file()


def stated_threads() -> int | None:
    """Return the number of threads that ``OMP_NUM_THREADS`` states."""
    stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(stated) if stated.isdecimal() else None


def shared_threads(num_processes: int) -> int:
    """Return the threads of each of several processes: as stated, else a share of this
    machine's."""
    import torch

    return stated_threads() or max(1, torch.get_num_threads() // num_processes)


def run_worker(
    folder: Path,
    environment: Mapping[str, str],
    should_stop: Callable[[], bool],
    should_kill: Callable[[], bool] = lambda: False,
    start: Callable[[Path, Mapping[str, str]], Worker] | None = None,
) -> int:
    """Run worker processes one after another until the unit in ``folder`` is sealed.

    Args:
        folder: folder of the unit.
        environment: variables that the worker gets besides those of this process.
        should_stop: whether the worker should write a checkpoint and end.
        should_kill: whether it should end at once, which costs no finished result.
        start: starts a worker in ``folder`` with these variables; by default a new process of
            Python.

    Returns:
        0 once the unit is sealed. Otherwise the exit code of an error that concerns the whole
        study, which another attempt would meet again, or that of the last attempt. A signal that
        killed the last attempt is negative.
    """
    code, failures, kills = Interrupted.exit_code, 0, 0
    extra: dict[str, str] = {}
    while failures < MAX_ATTEMPTS and kills < MAX_MEMORY_KILLS:
        if should_stop():
            return Interrupted.exit_code
        before = _memory_kills()
        worker = (start or start_worker)(folder, {**environment, **extra})
        code = _end_of(worker, should_stop, should_kill)
        if code in STUDY_CODES or (code == OK and (folder / SEAL).is_file()):
            break
        is_killed = code == -signal.SIGKILL
        message = last_lines(folder) if is_killed else ""
        is_short = message.startswith("error: out of memory")
        if is_short and IS_SMALLER in message:
            extra = {}
            continue
        if is_short or (is_killed and _memory_kills() > before):
            kills += 1
        else:
            failures += 1
        # A single kill by the system could be due to the memory of another process.
        if is_short or kills > 1:
            extra = {KILLED_FOR_MEMORY: str(kills)}
    return code


def _memory_kills() -> int:
    """Count the processes that Linux has killed for lack of memory since it started."""
    with suppress(OSError):
        for line in VMSTAT.read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def fork_worker(starter: Starter, folder: Path, environment: Mapping[str, str]) -> ForkedWorker:
    """Start one worker process as a child of ``starter``; it stops by itself if that ends."""
    with (folder / MESSAGES).open("wb") as messages:
        return starter.start(["work", str(folder.parents[1]), folder.name], environment, messages)


def start_worker(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one worker process; it stops by itself if this process ends."""
    with (folder / MESSAGES).open("wb") as messages:
        return subprocess.Popen(
            [sys.executable, *WORKER, "work", str(folder.parents[1]), folder.name],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env={**os.environ, **environment, DRIVER: str(os.getpid())},
            # A session of its own: Ctrl-C in the terminal reaches it through should_stop alone.
            start_new_session=True,
        )


def _end_of(
    worker: Worker, should_stop: Callable[[], bool], should_kill: Callable[[], bool]
) -> int:
    """Wait for a worker, and return its exit code.

    Requests to stop are passed on once, and requests to kill always.
    """
    is_asked = False
    while True:
        try:
            return worker.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if should_kill():
                worker.send_signal(signal.SIGKILL)
            elif should_stop() and not is_asked:
                worker.send_signal(signal.SIGTERM)  # unlike SIGINT never ignored from birth
                is_asked = True


def check_worker(code: int, folder: Path, node: str = "") -> None:
    """Raise the error behind the result of :func:`run_worker`, perhaps on another ``node``.

    Raises WorkerFailed: every attempt was killed or failed. Raises RankscopeError: the worker's
    error, if it concerns the whole study.
    """
    if code == OK and (folder / SEAL).is_file():
        return
    message = last_lines(folder)
    if code < 0:
        reason = f"each of its workers failed, the last was killed by signal {-code}"
        # Native code aborts when memory runs out, after a line about it.
        if re.search("memory allocation|bad_alloc|out of memory|allocate memory", message):
            raise WorkerFailed(f"out of memory: {reason}: {message}", "oom")
        if code == -signal.SIGKILL:
            reason += "; the system does that if memory runs out ('dmesg' says so)"
        raise WorkerFailed(f"{reason}: {message or 'no message'}")
    if code in STUDY_CODES:
        error = _stored_error(folder)
        if error is None or error.exit_code != code:  # not of this worker
            text = message.removeprefix("error: ") or f"worker of {folder} stopped"
            error = WORKER_ERRORS[code](text)
        where = f"{node}: {error.where}" if node else error.where
        raise type(error)(where, error.found, error.expected, error.do, error.faults)
    reason = f"its worker ended with exit code {code} and no result, {MAX_ATTEMPTS} times"
    raise WorkerFailed(f"{reason}: {message or 'no message'}")


@contextmanager
def storing_errors(folder: Path) -> Iterator[None]:
    """Store the error of a worker of the unit in ``folder``, for :func:`check_worker`."""
    with suppress(OSError):
        (folder / ERROR).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        own = error if isinstance(error, RankscopeError) else errors.address_space_shortage(error)
        known = errors.shortage_behind(error) or own
        if known is not None:
            with suppress(OSError, RankscopeError):
                replace_text(folder / ERROR, json.dumps(known, default=_fields))
        raise


def _fields(error: RankscopeError) -> list[Any]:
    """Return an error's fields for JSON; faults that are errors become lists in turn."""
    kind = next(k.__name__ for k in type(error).__mro__ if k.__module__ == errors.__name__)
    return [kind, error.where, error.found, error.expected, error.do, error.faults]


def _from_fields(fields: Any) -> Any:
    if isinstance(fields, str):
        return fields
    kind, *parts, faults = fields
    return getattr(errors, kind)(*parts, [_from_fields(fault) for fault in faults])


def _stored_error(folder: Path) -> RankscopeError | None:
    try:
        error: RankscopeError = _from_fields(json.loads((folder / ERROR).read_text("utf-8")))
    except (OSError, ValueError):
        return None
    return error


def last_lines(folder: Path) -> str:
    """Return a worker's last message, or its last lines; empty if it never started."""
    try:
        text = (folder / MESSAGES).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    if (start := text.rfind("\nerror: ")) >= 0 or text.startswith("error: "):
        return " ".join(text[start + 1 :].split())
    return " | ".join(line.strip() for line in text.splitlines()[-LAST_LINES:])
