"""Workers whose starter is born with the imports done, as commands of the launcher are.

Importing torch takes longer than the work of a small unit, and a process that dies meanwhile proves
nothing. So the driver forks its first starter before anything else; all else is as it always is.
"""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from rankscope.run.workers.starter import Starter

COMMAND = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fault_workers import fork_starter
fork_starter()
import rankscope.cli
rankscope.cli.main()
"""
"""The launcher runs this: a command whose first starter is forked."""


def fork_starter() -> None:
    """Have this process use a copy of itself, as it is now, as its first starter."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.fork()
    if process == 0:
        ours.close()
        os.setsid()
        os.dup2(theirs.fileno(), 0)
        theirs.close()
        from rankscope.cli import main

        main(is_starter=True)
        sys.exit(0)
    theirs.close()
    imported = Starter.begin

    def begin(
        starter: Starter, messages: BinaryIO
    ) -> tuple[subprocess.Popen[bytes], socket.socket]:
        Starter.begin = imported  # type: ignore[method-assign]
        return ForkedStarter(process), ours

    Starter.begin = begin  # type: ignore[method-assign]


class ForkedStarter(subprocess.Popen[bytes]):
    """A child that is already there."""

    def __init__(self, process: int) -> None:
        self.args, self.pid, self.returncode = "starter", process, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._waitpid_lock = True, threading.Lock()
        self._sigint_wait_secs = 0.25
