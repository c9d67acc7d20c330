"""Worker processes that are born with the imports done, as commands of the launcher are.

Importing torch takes longer than the work of a small unit, and a worker that dies meanwhile proves
nothing. A process that the driver forks before anything else waits for orders; the workers that it
forks are children of the driver, as real ones are.
"""

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ended import ends

from rankscope.run.executors import worker_process
from rankscope.run.units import DRIVER

COMMAND = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fault_workers import fork_workers
fork_workers()
import rankscope.cli
rankscope.cli.main()
"""
"""What the launcher runs: a command whose workers are forked."""
CLONE = {"x86_64": 56, "aarch64": 220}
"""Number of the system call, by machine."""
CLONE_PARENT = 0x8000
"""The new process is a child of this one's parent."""


def fork_workers() -> None:
    """Have this process fork its local workers from a copy of itself as it is now."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        serve(theirs)
    theirs.close()
    lock = threading.Lock()

    def start_worker(folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        order = {
            "words": ["work", str(folder.parents[1]), folder.name],
            "environment": {**os.environ, **environment, DRIVER: str(os.getpid())},
        }
        with lock, (folder / worker_process.MESSAGES).open("wb") as messages:
            socket.send_fds(ours, [json.dumps(order).encode()], [messages.fileno()])
            return ForkedWorker(int(ours.recv(32)))

    worker_process.start_worker = start_worker


class ForkedWorker(subprocess.Popen[bytes]):
    """A child that is already there."""

    def __init__(self, process: int) -> None:
        self.args, self.pid, self.returncode = "worker", process, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._sigint_wait_secs = 0.25


def serve(orders: socket.socket) -> None:
    """Fork a worker for each order, until the driver ends; returns in workers only, by exiting."""
    while True:
        order, files, _, _ = socket.recv_fds(orders, 2**18, 1)
        if not order:
            os._exit(0)
        process = fork_sibling()
        if process == 0:
            orders.close()
            ends(partial(work, json.loads(order), files[0]))
        os.close(files[0])
        orders.send(str(process).encode())


def fork_sibling() -> int:
    """As ``os.fork``, but the new process has the parent of this one."""
    python, libc = ctypes.pythonapi, ctypes.PyDLL(None)
    number = CLONE[platform.machine()]
    python.PyOS_BeforeFork()
    process = int(libc.syscall(number, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    (python.PyOS_AfterFork_Parent if process else python.PyOS_AfterFork_Child)()
    return process


def work(order: Mapping[str, object], messages: int) -> None:
    """Run one unit."""
    os.setsid()
    os.dup2(messages, 1)
    os.dup2(messages, 2)
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    sys.argv = ["rankscope", *order["words"]]  # type: ignore[misc]
    from rankscope.cli import main

    main()
