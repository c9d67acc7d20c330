"""Units as tasks of a SLURM array job, on nodes that share the study's folder with the driver.

A task ends by itself before its time is up: the batch script passes SLURM's signal on to the
worker, which writes a checkpoint, and requeues the task. A driver that was closed leaves its jobs
in the queue; the next one finds them by the job that is named in each unit's folder.
"""

import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.config.slurm import WARNING_MINUTES, SlurmConfig
from rankscope.errors import Interrupted, UserError
from rankscope.filesystem import replace_text
from rankscope.run.executors import ExecutorOptions, WorkerFailed, register_executor
from rankscope.run.executors.worker_process import (
    MAX_ATTEMPTS,
    MESSAGES,
    STUDY_CODES,
    WORKER,
    check_worker,
    last_lines,
)
from rankscope.run.units import is_sealed

JOB, EXIT_CODE, STOP = "slurm-job", "exit-code", "slurm-stop"
PATIENCE_SECONDS = 600.0  # How long the queue may be silent, such as while its controller restarts
QUEUE_SECONDS = 2.0  # How often the queue is asked
LAUNCH_FAILED = "launch failed requeued held"
"""Why a task waits that a node could not launch. SLURM holds it for good."""

SCRIPT = """#!/bin/bash
{options}
units=({units})
unit=${{units[$SLURM_ARRAY_TASK_ID]}}
cd {folder} || exit 2
trap 'kill -TERM "$worker" 2>/dev/null' USR1 TERM
{worker} "$unit" > "$unit/{messages}" 2>&1 &
worker=$!
wait "$worker"; code=$?
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; code=$?; done
if [ "$code" = {interrupted} ] && [ ! -e {stop} ]; then
    exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
echo "$code" > "$unit/{exit_code}.new" && mv "$unit/{exit_code}.new" "$unit/{exit_code}"
"""


@dataclass(slots=True)
class _QueuedUnit:
    """A unit, its future, its task in the queue, such as ``17_3``, and how often that was lost."""

    folder: Path
    future: Future[None] = field(default_factory=Future)
    job: str = ""
    num_lost: int = 0


class SlurmExecutor:
    """Submits all units as one array job and waits for their seals."""

    num_local = 1
    runs_elsewhere = True

    def __init__(self, options: ExecutorOptions) -> None:
        for command in ("sbatch", "squeue", "scancel"):
            if shutil.which(command) is None:
                raise UserError(
                    f"--executor slurm: found no {command!r} on this machine, expected SLURM's "
                    "commands; run this on a login node"
                )
        self.config = options.slurm
        self.max_running = options.num_workers
        self.threads, self.devices = options.threads(1), options.devices
        self.units: list[_QueuedUnit] = []
        self.lock = threading.Lock()
        self.is_asked = False  # the tasks, to stop
        self.stopped, self.closed = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def submit(self, folder: Path) -> Future[None]:
        """Take a unit; those that come within a moment enter the queue as one array."""
        (folder / EXIT_CODE).unlink(missing_ok=True)  # of a task that a driver stopped and left
        unit = _QueuedUnit(folder)
        with self.lock:
            self.units.append(unit)
        return unit.future

    def stop(self) -> None:
        """Let running tasks write a checkpoint and end, and take the others off the queue."""
        self.stopped.set()

    def close(self) -> None:
        while any(not unit.future.done() for unit in self.units):
            time.sleep(QUEUE_SECONDS / 4)
        self.closed.set()
        self.thread.join()

    def watch(self) -> None:
        """Submit what is new and end the futures of units that ended, until the executor closes."""
        answered = time.monotonic()
        while not self.closed.wait(QUEUE_SECONDS):
            with self.lock:
                pending = [unit for unit in self.units if not unit.future.done()]
            try:
                self.take_turn(pending)
                answered = time.monotonic()
            except Exception as error:
                # The controller may be restarting. A first submission that it refuses is a mistake.
                is_silent = isinstance(error, UserError) and any(unit.job for unit in pending)
                if not is_silent or time.monotonic() > answered + PATIENCE_SECONDS:
                    self.give_up(pending, error)

    def take_turn(self, pending: list[_QueuedUnit]) -> None:
        """Look at all units that have not ended, and queue those that are not in the queue."""
        if self.stopped.is_set() and not self.is_asked:
            self.ask_to_stop(pending)
        asked = ("squeue", "--noheader", "--array", "--me", "--format=%i %r")
        lines = slurm(*asked).splitlines() if pending else []
        reasons = {task: reason for task, _, reason in (line.partition(" ") for line in lines)}
        for unit in pending:
            self.look_at(unit, reasons)
        self.enqueue([unit for unit in pending if not (unit.job or unit.future.done())])

    def give_up(self, units: list[_QueuedUnit], error: Exception) -> None:
        """End the futures of units with an error, after asking their tasks to end."""
        with suppress(UserError):
            self.ask_to_stop(units)
        for unit in units:
            if not unit.future.done():
                unit.future.set_exception(error)

    def look_at(self, unit: _QueuedUnit, reasons: Mapping[str, str]) -> None:
        """End the future of a unit that ended; forget the task of one that was lost. ``reasons``
        say why a task in the queue, such as ``17_3``, waits."""
        exit_code = unit.folder / EXIT_CODE
        if not unit.job and (unit.folder / JOB).is_file():
            unit.job = (unit.folder / JOB).read_text(encoding="utf-8")
        if is_sealed(unit.folder):
            unit.future.set_result(None)
        elif exit_code.is_file():
            code = int(exit_code.read_text(encoding="utf-8"))
            exit_code.unlink()
            if code not in STUDY_CODES:
                self.lose(unit, f"its worker ended with exit code {code} and no result")
                return
            try:
                check_worker(code, unit.folder)
            except Exception as error:
                unit.future.set_exception(error)
        elif reasons.get(unit.job) == LAUNCH_FAILED:
            slurm("scancel", "--quiet", unit.job)
            self.lose(unit, "SLURM could not launch its task on a node")
        elif unit.job not in reasons:
            if self.stopped.is_set():
                unit.future.set_exception(Interrupted("stopped before the unit began"))
            elif unit.job:
                self.lose(unit, "its task left the queue without a result")

    def lose(self, unit: _QueuedUnit, why: str) -> None:
        """Queue a unit again whose task ended without a result, unless that happened too often."""
        unit.job = ""
        (unit.folder / JOB).unlink(missing_ok=True)
        unit.num_lost += 1
        if unit.num_lost == MAX_ATTEMPTS:
            message = last_lines(unit.folder) or "no message"
            unit.future.set_exception(WorkerFailed(f"{why}, {MAX_ATTEMPTS} times: {message}"))

    def enqueue(self, units: list[_QueuedUnit]) -> None:
        if not units or self.stopped.is_set():
            return
        folders = [unit.folder for unit in units]
        place = folders[0].parent.absolute()
        (place / STOP).unlink(missing_ok=True)
        script = batch_script(self.config, folders, self.threads, self.max_running, self.devices)
        # Not a line of the script, which could not quote it.
        chdir = f"--chdir={place}"
        job = slurm("sbatch", "--parsable", chdir, stdin=script).partition(";")[0]
        for i, unit in enumerate(units):
            unit.job = f"{job}_{i}"
            replace_text(unit.folder / JOB, unit.job)

    def ask_to_stop(self, units: list[_QueuedUnit]) -> None:
        """Take waiting tasks off the queue; let running ones write a checkpoint and end."""
        jobs = [unit.job for unit in units if unit.job]
        if not jobs:
            return
        replace_text(units[0].folder.parent / STOP, "")
        slurm("scancel", "--quiet", "--state=PENDING", *jobs)
        slurm("scancel", "--quiet", "--batch", "--signal=USR1", *jobs)
        self.is_asked = True


def batch_script(
    config: SlurmConfig,
    folders: list[Path],
    threads: int,
    max_running: int | None,
    devices: int = 1,
) -> str:
    place = folders[0].parent.absolute()
    limit = "" if max_running is None else f"%{max_running}"
    options = {
        "job-name": "rankscope",
        "array": f"0-{len(folders) - 1}{limit}",
        "output": "slurm-%A_%a.log",
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{60 * WARNING_MINUTES}",
        "cpus-per-task": threads * devices,
        "partition": config.partition,
        "account": config.account,
        "time": config.time,
        "gres": config.gres,
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
        if value is not None or name == "requeue"
    ]
    worker = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, *WORKER, "work"]
    return SCRIPT.format(
        options="\n".join([*lines, *(f"#SBATCH {line}" for line in config.options)]),
        units=" ".join(folder.name for folder in folders),
        folder=shlex.quote(str(place)),
        worker=shlex.join([*worker, str(place.parent)]),
        messages=MESSAGES,
        interrupted=Interrupted.exit_code,
        stop=STOP,
        exit_code=EXIT_CODE,
    )


def cancel_tasks(units: Path) -> None:
    """Take the waiting tasks of an earlier driver off the queue, as another executor runs them."""
    files = list(units.glob(f"*/{JOB}"))
    if files and shutil.which("scancel"):
        jobs = [file.read_text(encoding="utf-8") for file in files]
        slurm("scancel", "--quiet", "--state=PENDING", *jobs)
        for file in files:
            file.unlink()


def slurm(*command: str, stdin: str = "") -> str:
    """What one of SLURM's commands prints. UserError if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"--executor slurm: {command[0]} failed: {done.stderr.strip() or done.returncode}"
        )
    return done.stdout.strip()


register_executor("slurm", SlurmExecutor)
