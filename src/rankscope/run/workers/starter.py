"""Between driver and worker, on this machine: a process that has imported everything and forks.

Importing torch and transformers takes longer than training a small unit. So a driver begins one
*starter*, which imports them and then forks a worker for each order. It computes nothing and never
touches a GPU, so its children may do both. A worker runs what ``rankscope work`` runs, and a
process that ended has returned all its memory.

The starter ends when its driver closes the socket, or dies. Its workers then see that they have
another parent, write a checkpoint and end.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO

from rankscope.errors import STOP_SIGNALS

STARTER = ("-P", "-c", "from rankscope.cli import main; main(is_starter=True)")
"""Python's arguments; -P: a file in the current folder must not hide a standard module."""
DRIVER = "RANKSCOPE_DRIVER"
"""Environment variable with the process id of a worker's driver, if both run on one machine."""
CAN_FORK = sys.platform == "linux"
"""Whether workers may be forked: on other systems a process with loaded libraries may not fork."""
ORDER_BYTES, ANSWER_BYTES = 2**16, 16
LOOK_SECONDS = 0.05  # How often a starter looks for workers that ended


class Starter:
    """The driver's side: it begins the starter for the first worker, and again if it died."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment`` holds variables that all workers get besides those of this process."""
        self.environment, self.lock = dict(environment), threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.orders: socket.socket | None = None

    def begin(self, messages: BinaryIO) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        """Begin a new starter, which prints to ``messages`` if it fails; return it and its
        socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *STARTER],
                stdin=theirs.fileno(),
                stdout=messages,
                stderr=messages,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C in the terminal reaches the driver alone
            )
        return process, ours

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], messages: BinaryIO
    ) -> "ForkedWorker":
        """Start ``rankscope ARGUMENTS`` in a session of its own.

        Args:
            arguments: arguments of the command line.
            environment: variables of this worker besides those of all.
            messages: an open file for its output.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps([list(arguments), dict(environment)]).encode()
        with self.lock, theirs:
            if self.process is None or self.orders is None or self.process.poll() is not None:
                self.close()
                self.process, self.orders = self.begin(messages)
            with suppress(OSError):  # it has just died, and the worker with it
                socket.send_fds(self.orders, [order], [theirs.fileno(), messages.fileno()])
            return ForkedWorker(ours, self.process)

    def close(self) -> None:
        """End the starter; call it when its workers have ended."""
        if self.orders is not None:
            self.orders.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class ForkedWorker:
    """A worker as its driver sees it: the child of a child, behind its own connection."""

    def __init__(self, connection: socket.socket, starter: "subprocess.Popen[bytes]") -> None:
        self.connection, self.starter = connection, starter

    def wait(self, seconds: float) -> int:
        """Return its exit code, or minus the signal that killed it or a starter that died first.

        Raises TimeoutExpired: it still runs after ``seconds``, as in ``subprocess.Popen.wait``.
        """
        self.connection.settimeout(seconds)
        while True:
            try:
                answer = self.connection.recv(ANSWER_BYTES)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("a worker", seconds) from error
            except ConnectionResetError:  # a signal came too late; the answer is still there
                continue
            self.connection.close()
            # Without an answer the starter died, and the worker, which has the other end, ended.
            return int(answer) if answer else self.starter.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal through the starter; only that knows whether the process still exists."""
        with suppress(OSError):
            self.connection.send(str(number).encode())


# --- the starter's side


def become_worker() -> list[str]:
    """Fork a process for each order from standard input, and answer with its exit code.

    Only those processes return, with the arguments of the command line that each should run.
    """
    # Before a library starts a thread: only signals that no thread takes wait for the worker.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    import_module("rankscope.run.workers.worker")
    orders = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    gc.freeze()  # the present objects stay: a worker's collector would copy them page by page
    parent, running = os.getpid(), dict[socket.socket, int]()
    while True:
        ready, _, _ = select.select([orders, *running], [], [], LOOK_SECONDS if running else None)
        if orders in ready:
            order, files, _, _ = socket.recv_fds(orders, ORDER_BYTES, 2)
            if not order:
                os._exit(0)
            for file in files:  # Python 3.11's recv_fds ignores the flag that would do it
                os.set_inheritable(file, False)
            connection, messages = socket.socket(fileno=files[0]), files[1]
            os.dup2(messages, 1)
            os.dup2(messages, 2)
            os.close(messages)
            process = os.fork()
            if process == 0:
                for other in (orders, *running):
                    other.close()
                connection.detach()  # stays open: the driver waits for the end of both processes
                arguments, environment = json.loads(order)
                os.setsid()
                os.environ.update(environment, **{DRIVER: str(parent)})
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return list(arguments)
            running[connection] = process
        for connection in running.keys() & set(ready):
            # Without a number the driver has given this worker up.
            os.kill(running[connection], int(connection.recv(ANSWER_BYTES) or signal.SIGTERM))
        _answer_ended(running)


def _answer_ended(running: dict[socket.socket, int]) -> None:
    """Send the exit codes of workers that ended to the driver, and forget them."""
    for connection, process in list(running.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with suppress(OSError):  # the driver died
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()
            del running[connection]
