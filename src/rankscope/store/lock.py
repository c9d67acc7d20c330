"""One writer per study: an advisory lock that ends with its process."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Self

from rankscope.errors import StudyLocked


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
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 256).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StudyLocked(
                f"{self.path.parent}: process {holder} is running this study. Wait for it or stop "
                "it, then give the same command again."
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        self._fd = fd
        return self

    def release(self) -> None:
        if self._fd is not None:
            # The file stays: if it were removed, a third process could lock a new file of that name
            # while a second one waits for this one.
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
