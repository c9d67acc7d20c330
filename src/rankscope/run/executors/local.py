"""Worker processes on this machine, one per unit."""

import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from rankscope import errors
from rankscope.errors import Interrupted, RankscopeError
from rankscope.run.executors import WorkerFailed, register_executor
from rankscope.run.units import DRIVER, SEAL

MAX_ATTEMPTS = 5
"""A unit whose worker died that often is given up."""
MESSAGES = "worker.log"


class LocalExecutor:
    """Up to ``num_workers`` processes at a time.

    Threads are split among them unless OMP_NUM_THREADS is set; with equal thread counts, results
    are equal for any number of workers. A process that ended has returned all its memory, so no
    unit takes the blame for an earlier one.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_local = num_workers
        self.threads = max(1, torch.get_num_threads() // num_workers)
        self.pool = ThreadPoolExecutor(num_workers)
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def submit(self, folder: Path) -> Future[None]:
        """Run a unit as soon as a worker is free."""
        return self.pool.submit(self.run, folder)

    def run(self, folder: Path) -> None:
        """Run worker processes one after another until the unit is sealed."""
        code = 0
        for _ in range(MAX_ATTEMPTS):
            process = self.start(folder)
            code = process.wait()
            with self.lock:
                self.running.discard(process)
            if code == 0 and (folder / SEAL).is_file():
                return
            if code >= 0:
                raise error_of(code, folder)
        message = last_line(folder)
        reason = f"its worker was killed by signal {-code}, {MAX_ATTEMPTS} times"
        # Native code aborts when memory runs out, after a line about it.
        if re.search("memory allocation|bad_alloc|out of memory|allocate memory", message):
            raise WorkerFailed(f"out of memory: {reason}: {message}", "oom")
        if code == -signal.SIGKILL:
            reason += "; the system does that if memory runs out ('dmesg' says so)"
        raise WorkerFailed(f"{reason}: {message or 'no message'}")

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start one worker process.

        Raises:
            Interrupted: :meth:`stop` was called.
        """
        # -P: a file in the current folder must not hide a module of the standard library.
        command = [sys.executable, "-P", "-c", "from rankscope.cli import main; main()"]
        command += ["work", str(folder.parents[1]), folder.name]
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ, DRIVER: str(os.getpid())}
        with self.lock, (folder / MESSAGES).open("wb") as messages:
            if self.stopped:
                raise Interrupted("stopped before the unit began")
            # A session of its own: Ctrl-C in the terminal reaches workers through stop() alone.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env=environment,
                start_new_session=True,
            )
            self.running.add(process)
        return process

    def stop(self) -> None:
        """Interrupt all workers: they write a checkpoint and end."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signal.SIGTERM)  # unlike SIGINT never ignored from birth

    def close(self) -> None:
        """Wait for all workers; a second Ctrl-C kills them, which costs no finished result."""
        try:
            self.pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            with self.lock:
                for process in self.running:
                    process.kill()
            raise


def error_of(code: int, folder: Path) -> RankscopeError:
    """The error behind a worker's exit code; another attempt would meet it again."""
    message = last_line(folder).removeprefix("error: ") or f"worker of {folder} stopped"
    unfinished = errors.OutOfMemory if "out of memory" in message else errors.DiskFull
    for kind in (errors.UserError, errors.IntegrityError, unfinished, errors.Interrupted):
        if code == kind.exit_code:
            return kind(message)
    return RankscopeError(
        f"a worker ended with exit code {code}: {last_line(folder) or 'no message'}. Its output is "
        f"in {folder / MESSAGES}; finished results are kept, and the same command continues"
    )


def last_line(folder: Path) -> str:
    """The last thing that a worker printed."""
    text = (folder / MESSAGES).read_text(encoding="utf-8", errors="replace").strip()
    return " ".join(text[text.rfind("error: ") :].split()) if "error: " in text else text[-200:]


register_executor("local", LocalExecutor)
