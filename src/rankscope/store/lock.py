"""One writer per study: an advisory lock that ends with its process."""

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from rankscope.errors import StudyLocked

MOST_TRIES = 100  # For five seconds


class StudyLock:
    """Exclusive ``flock`` on ``OUT/ledger.lock``; the file names the process that holds it.

    The kernel releases the lock when the process ends, however it ends, so the file of a killed
    process locks nobody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> Self:
        """Take the lock, or raise StudyLocked with the name of the process that has it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not (_locked(fd, fcntl.LOCK_EX) or _locked_later(fd)):
            holder = _holder(fd)
            os.close(fd)
            raise StudyLocked(
                f"{self.path.parent}: process {holder} is running this study. Wait for it or stop "
                "it, then give the same command again."
            )
        self._fd = fd
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            self.release()
            raise
        return self

    def release(self) -> None:
        if self._fd is not None:
            # The file stays: if it were removed, a third process could lock a new file of that name
            # while a second one waits for this one.
            with suppress(OSError):  # the lock counts, not the name in it
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def running_process(out: Path) -> str | None:
    """The process that runs the study in ``out``, such as ``4711 on host``; None if there is none.
    Looks by taking the lock for a moment, which a runner that starts just then waits for."""
    try:
        fd = os.open(out / "ledger.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _locked(fd, fcntl.LOCK_SH) else _holder(fd)
    finally:
        os.close(fd)


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_later(fd: int) -> bool:
    """Try again: ``running_process`` takes the lock for a moment, and many may look at once."""
    for _ in range(MOST_TRIES):
        time.sleep(0.05)
        if _locked(fd, fcntl.LOCK_EX):
            return True
        if _is_alive(_holder(fd)):
            return False
    return False


def _is_alive(holder: str) -> bool:
    """Whether a process such as ``4711 on host`` of this machine exists."""
    pid, _, host = holder.partition(" on ")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _holder(fd: int) -> str:
    return os.pread(fd, 256, 0).decode(errors="replace").strip() or "unknown"
