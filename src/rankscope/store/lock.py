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
from rankscope.filesystem import check_in_place, make_folder, network_file_system
from rankscope.store.database import SMALL_WRITE

TRIES, PAUSE = 40, 0.05  # Seconds between tries: readers take the lock for a moment


class StudyLock:
    """Exclusive ``flock`` on ``OUT/ledger.lock``; the file names the process that holds it.

    The kernel releases the lock when the process ends, however it ends. So the file of a killed
    process of this machine locks nobody out. A process of another machine cannot be checked from
    here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, take_over: bool) -> Self:
        """Take the lock, or raise StudyLocked with the name of the process that holds it.

        ``take_over`` takes it even if the file names a process of another machine.
        """
        out = self.path.parent
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            pauses = (0.0, *TRIES * (PAUSE,))
            is_free = any(_locked(self._fd, fcntl.LOCK_EX, pause) for pause in pauses)
            holder, here = _holder(self._fd), socket.gethostname()
            if not is_free:
                do = "wait for it or stop it, then give the same command again"
                raise StudyLocked(out, f"process {holder}, which is running this study", "none", do)
            if holder.partition(" on ")[2] not in ("", here) and not take_over:
                found = f"process {holder}, which began to run this study and did not end it"
                do = "if it does not run any more, add --take-over"
                raise StudyLocked(out, found, f"one of this machine ({here})", do)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()} on {here}\n".encode())
        except BaseException:
            os.close(self._fd)
            self._fd = None
            raise
        return self

    def check_in_place(self) -> None:
        """Raise UserError if the study's folder is not where it was when the lock was taken."""
        check_in_place(self.path.parent, is_another=not self.is_in_place())

    def is_in_place(self) -> bool:
        try:
            return self._fd is not None and samestat(os.fstat(self._fd), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        if self._fd is not None:
            # The file stays. If it were removed, a third process could lock a new file of that name
            # while a second one waits for this one.
            with suppress(OSError):  # the lock counts, not the name in it
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def make_study_folder(out: Path, take_over: bool) -> None:
    """Create the folder of a study on a disk with reliable SQLite and locks."""
    with reporting_shortages(out, lambda: SMALL_WRITE):  # finds a full disk behind the fault
        make_folder(out)
    network = None if take_over else network_file_system(out)
    if network is not None:
        found = f"a network file system ({network})"
        do = "give another --out, or add --take-over if no other machine uses this folder"
        raise UserError(out, found, "a disk of this machine, as locks and SQLite fail on it", do)


def running_process(out: Path) -> str | None:
    """Return the process that runs the study in ``out``, such as ``4711 on host``; None without
    one.

    The check takes the lock for a moment. A runner that starts just then waits for it.
    """
    try:
        fd = os.open(out / "ledger.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _locked(fd, fcntl.LOCK_SH) else _holder(fd)
    finally:
        os.close(fd)


def _locked(fd: int, kind: int, pause: float = 0.0) -> bool:
    """Try to take the lock, after a pause of seconds."""
    time.sleep(pause)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    return os.pread(fd, 256, 0).decode(errors="replace").strip() or "unknown"
