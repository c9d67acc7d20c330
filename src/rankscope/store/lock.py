"""One writer per study: an advisory lock that ends with its process."""

import fcntl
import os
import socket
import time
from contextlib import suppress
from os.path import samestat
from pathlib import Path
from typing import Self

from rankscope.errors import StudyLocked, UserError, reporting_shortages
from rankscope.filesystem import network_file_system
from rankscope.store.database import MOST_TRIES, SMALL_WRITE


class StudyLock:
    """Exclusive ``flock`` on ``OUT/ledger.lock``; the file names the process that holds it.

    The kernel releases the lock when the process ends, however it ends, so the file of a killed
    process of this machine locks nobody out. Whether a process of another machine has ended cannot
    be seen from here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, take_over: bool = False) -> Self:
        """Take the lock, or raise StudyLocked with the name of the process that has it.

        ``take_over``: also if the file names a process of another machine.
        """
        out = self.path.parent
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        is_free = _locked(fd, fcntl.LOCK_EX) or _locked_later(fd)
        holder = _holder(fd)
        if not is_free:
            os.close(fd)
            raise StudyLocked(
                f"{out}: found process {holder}, which is running this study, expected none; wait "
                "for it or stop it, then give the same command again"
            )
        here, (_, _, host) = socket.gethostname(), holder.partition(" on ")
        if host not in ("", here) and not take_over:
            os.close(fd)
            raise StudyLocked(
                f"{out}: found process {holder}, which began to run this study and did not end "
                f"it, expected one of this machine ({here}); if it does not run any more, add "
                "--take-over"
            )
        self._fd = fd
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()} on {here}\n".encode())
        except OSError:
            self.release()
            raise
        return self

    def check_in_place(self) -> None:
        """Raise UserError if the study's folder is not where it was when the lock was taken."""
        if not self.is_in_place():
            raise UserError(
                f"{self.path.parent}: found no folder or another one, expected the running "
                "study's: it was moved or removed; give the command again with its new place as "
                "--out"
            )

    def is_in_place(self) -> bool:
        try:
            return self._fd is not None and samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        if self._fd is not None:
            # The file stays: if it were removed, a third process could lock a new file of that name
            # while a second one waits for this one.
            with suppress(OSError):  # the lock counts, not the name in it
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def make_study_folder(out: Path, take_over: bool) -> None:
    """Create the folder of a study on a disk where SQLite and locks can be relied on."""
    with reporting_shortages(out, lambda: SMALL_WRITE):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{out}: cannot be used as a study folder ({error}).") from error
    network = None if take_over else network_file_system(out)
    if network is not None:
        raise UserError(
            f"{out}: found a network file system ({network}), expected a disk of this machine, as "
            "locks and SQLite fail on it; give another --out, or add --take-over if no other "
            "machine uses this folder"
        )


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
