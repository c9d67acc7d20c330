"""Units as tasks of a SLURM array job, on nodes that share the study's folder with the driver.

A task ends by itself before its time is up. The batch script passes SLURM's signal on to the
worker, which writes a checkpoint, and requeues the task. A driver that was closed leaves its jobs
in the queue; the next one finds them by the job that is named in each unit's folder.
"""

import functools
import math
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationInfo, field_validator

from rankscope.config.section import PlainText
from rankscope.errors import CONTINUES, Interrupted, UserError
from rankscope.filesystem import replace_text
from rankscope.progress import LOG, JsonlReporter, ProgressReporter
from rankscope.run.executors import Executor, ExecutorSettings
from rankscope.run.workers.attempts import (
    MAX_ATTEMPTS,
    MESSAGES,
    STUDY_CODES,
    WORKER,
    WorkerFailed,
    check_worker,
    is_sealed,
    last_lines,
    stated_threads,
)

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig

SLURM_WORD = r"^[A-Za-z0-9][A-Za-z0-9_.:,=/-]*$"
DEFAULT_MAX_ARRAY_SIZE = 1001
JOB, EXIT_CODE, STOP = "slurm-job", "exit-code", "slurm-stop"
PATIENCE_SECONDS = 600.0  # How long the queue may be silent, such as while its controller restarts
FOLDER_SECONDS = 2.0  # How often the folders of units are read
QUEUE_SECONDS = 30.0
"""Longest pause between two questions to SLURM's controller, after some shorter ones that follow a
submission."""
CPUS_PER_DEVICE = 4  # Python, loading and decompositions: more would leave GPUs of a node idle
LAUNCH_FAILED = "launch failed requeued held"
"""Reason of a waiting task that a node could not launch. SLURM holds it for good."""
ALIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED"}
"""States of tasks that may still produce a result."""

SCRIPT = """#!/bin/bash
{options}
units=({units})
unit=${{units[$SLURM_ARRAY_TASK_ID]}}
cd {folder} || exit 2
{setup}
trap 'warned=1; kill -TERM "$worker" 2>/dev/null' USR1
trap 'ended=1; kill -TERM "$worker" 2>/dev/null' TERM
{worker} "$unit" > "$unit/{messages}" 2>&1 &
worker=$!
wait "$worker"; code=$?
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; code=$?; done
if [ "$code" = {interrupted} ] && [ ! -e {stop} ]; then
    # After scancel, or a preemption that requeues by itself, SLURM decides.
    [ -n "$ended" ] && [ -z "$warned" ] && exit "$code"
    # Where users may not requeue, the driver submits the unit again.
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit "$code"
fi
echo "$code $SLURMD_NODENAME" > "$unit/{exit_code}.new"
mv "$unit/{exit_code}.new" "$unit/{exit_code}"
"""


class SlurmSettings(ExecutorSettings):
    """Resources that SLURM is asked for, for each unit."""

    name = "slurm"

    partition: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Partition; by default the site's, like the other settings."""
    account: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Account that the time is charged to."""
    warning: int = Field(2, ge=1)
    """Minutes before its limit at which a task is asked to write a checkpoint and end; SLURM may
    ask up to a minute earlier."""
    time: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Time limit, such as ``4:00:00``; a unit that needs longer continues in another turn."""
    gres: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Generic resources, such as ``gpu:1``."""
    cpus: int | None = Field(None, ge=1)
    """Processors of a unit, and threads of its worker; by default 4 for each of its devices, or the
    number in ``OMP_NUM_THREADS``."""
    mem: Annotated[str, Field(pattern=SLURM_WORD)] | None = None
    """Memory of a unit, such as ``64G``; by default the planned memory; ``site`` asks for none."""
    options: list[Annotated[str, Field(pattern=r"^--[ -~]+$")]] = []
    """Further lines after ``#SBATCH``, such as ``--constraint=a100``."""
    setup: list[PlainText] = []
    """Lines of the batch script before the worker starts, such as ``module load cuda``."""
    python: PlainText | None = None
    """Interpreter on the nodes; by default the driver's own."""
    wrap: PlainText | None = None
    """Words before the worker's command, such as ``srun`` or ``apptainer exec --nv image.sif``."""

    @field_validator("time")
    @classmethod
    def _is_longer_than_the_warning(cls, time: str | None, info: ValidationInfo) -> str | None:
        least = info.data.get("warning", 0) + 1
        if time is not None and _time_limit_minutes(time) <= least:
            raise ValueError(
                f"found {time!r}, expected more than {least} minutes: a unit is interrupted up "
                f"to {least} minutes before the limit, and would never come to train"
            )
        return time

    @property
    def runs_elsewhere(self) -> bool:
        return True

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        self.check_trusted("setup", "python", "wrap", "options")
        return SlurmExecutor(self, config.train.devices, num_workers)

    @classmethod
    def withdraw(cls, units: Path) -> None:
        files = list(units.glob(f"*/{JOB}"))
        if files and shutil.which("scancel"):
            jobs = [file.read_text(encoding="utf-8") for file in files]
            slurm("scancel", "--quiet", "--state=PENDING", *jobs)
            for file in files:
                file.unlink()

    def script(self, folders: list[Path], devices: int, host_bytes: int, limit: int | None) -> str:
        cpus = self.cpus or devices * (stated_threads() or CPUS_PER_DEVICE)
        threads = max(1, cpus // devices)  # In each process of a worker
        place = folders[0].parent.absolute()
        memory = self.mem or f"{math.ceil(host_bytes / 2**20)}M"
        options = {
            "job-name": "rankscope",
            "array": f"0-{len(folders) - 1}" + ("" if limit is None else f"%{limit}"),
            "output": "slurm-%A_%a.log",
            "open-mode": "append",
            "signal": f"B:USR1@{60 * self.warning}",
            "cpus-per-task": cpus,
            "mem": memory if memory != "site" else None,
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "gres": self.gres,
        }
        lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
        python = self.python or sys.executable
        worker = ["env", f"OMP_NUM_THREADS={threads}", python, *WORKER, "work", str(place.parent)]
        return SCRIPT.format(
            options="\n".join(f"#SBATCH {line}" for line in [*lines, "--requeue", *self.options]),
            units=" ".join(folder.name for folder in folders),
            folder=shlex.quote(str(place)),
            setup="\n".join(self.setup),
            worker=" ".join([*([self.wrap] if self.wrap else []), shlex.join(worker)]),
            messages=MESSAGES,
            interrupted=Interrupted.exit_code,
            stop=STOP,
            exit_code=EXIT_CODE,
        )


@dataclass(slots=True)
class _QueuedUnit:
    """A unit, its future, its task in the queue, such as ``17_3``, and how often the task was
    lost."""

    folder: Path
    future: Future[None] = field(default_factory=Future)
    job: str = ""
    num_lost: int = 0


class SlurmExecutor:
    """Submits units as array jobs, each as large as the site allows, and waits for their seals."""

    name = "slurm"
    num_local = 1

    def __init__(
        self, settings: SlurmSettings, devices: int = 1, num_workers: int | None = None
    ) -> None:
        for command in ("sbatch", "squeue", "scancel", "scontrol"):
            if shutil.which(command) is None:
                found, do = f"no {command!r} on this machine", "run this on a login node"
                raise UserError("executor slurm", found, "SLURM's commands", do)
        self.settings, self.devices, self.max_running = settings, devices, num_workers
        self.units: list[_QueuedUnit] = []
        self.lock = threading.Lock()
        self.is_asked = False  # the tasks, to stop
        self.lacking: dict[str, UserError] = {}  # Nodes that may lack what others have
        self.next_question, self.pause = 0.0, FOLDER_SECONDS
        self.next_submission = 0.0
        self.stopped, self.closed = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def submit(self, folder: Path) -> Future[None]:
        """Take a unit; units that come within a moment enter the queue together."""
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
            time.sleep(FOLDER_SECONDS / 4)
        self.closed.set()
        self.thread.join()

    def watch(self) -> None:
        """Submit new units and end the futures of units that ended, until the executor closes."""
        answered = time.monotonic()
        while not self.closed.wait(FOLDER_SECONDS):
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
        for unit in pending:
            self.look_at(unit)
        waiting = [unit for unit in pending if unit.job and not unit.future.done()]
        if waiting and time.monotonic() >= self.next_question:
            self.ask_queue(waiting)
        if self.stopped.is_set() and not self.is_asked:
            self.ask_to_stop([unit for unit in waiting if not unit.future.done()])
        new = [unit for unit in pending if not (unit.job or unit.future.done())]
        if new and not self.stopped.is_set() and time.monotonic() >= self.next_submission:
            try:
                self.enqueue(new[: most_tasks()])  # the others in the next turns
            except UserError as error:
                if not waiting and self.lacking:
                    faults = [*self.lacking.values(), error]
                    raise UserError("executor slurm", "no other node", faults=faults) from error
                if not waiting:
                    raise
                # A site may limit how many tasks wait; those that run will make room.
                self.next_submission = time.monotonic() + QUEUE_SECONDS

    def give_up(self, units: list[_QueuedUnit], error: Exception) -> None:
        """End the futures of units with an error, after asking their tasks to end."""
        with suppress(UserError):
            self.ask_to_stop(units)
        for unit in units:
            if not unit.future.done():
                unit.future.set_exception(error)

    def look_at(self, unit: _QueuedUnit) -> None:
        """End the future of a unit that ended; forget the task of one that was interrupted."""
        exit_code = unit.folder / EXIT_CODE
        if not unit.job and (unit.folder / JOB).is_file():
            unit.job = (unit.folder / JOB).read_text(encoding="utf-8")
        if is_sealed(unit.folder):
            self.forget(unit)
            unit.future.set_result(None)
        elif exit_code.is_file():
            number, _, node = exit_code.read_text(encoding="utf-8").strip().partition(" ")
            exit_code.unlink()
            self.forget(unit)
            code = int(number)
            if code not in STUDY_CODES:
                self.lose(unit, f"its worker ended with exit code {code} and no result")
            elif code != Interrupted.exit_code or self.stopped.is_set():
                self.take_error(unit, code, node)
        elif not unit.job and self.stopped.is_set():
            found = "a request to stop before it began"
            unit.future.set_exception(Interrupted("unit", found, do=CONTINUES))

    def take_error(self, unit: _QueuedUnit, code: int, node: str) -> None:
        """End the study with a worker's error, unless another node may have what this one lacks.

        That may be the model's folder. Tasks that are submitted from now on then avoid the node.
        """
        try:
            check_worker(code, unit.folder, node)
        except UserError as error:
            self.lacking[node] = error
            if self.stopped.is_set() or len(self.lacking) >= MAX_ATTEMPTS:
                unit.future.set_exception(error)
            else:
                text = f"tasks keep off a node from now on: {error}"
                JsonlReporter(ProgressReporter(), unit.folder / LOG).note(text)
        except Exception as error:
            unit.future.set_exception(error)

    def ask_queue(self, units: list[_QueuedUnit]) -> None:
        """Find tasks that SLURM lost or could not launch, and tasks that a user canceled."""
        self.pause = min(2 * self.pause, QUEUE_SECONDS)
        self.next_question = time.monotonic() + self.pause
        asked = ("squeue", "--noheader", "--array", "--me", "--states=all", "--format=%i|%T|%r")
        lines = [line.split("|") for line in slurm(*asked).splitlines()]
        tasks = {task: (state, reason) for task, state, reason in lines}
        for unit in units:
            state, reason = tasks.get(unit.job, ("", ""))
            if is_sealed(unit.folder) or (unit.folder / EXIT_CODE).is_file():
                continue  # it ended after the last look
            if state.startswith("CANCEL") or (self.stopped.is_set() and state not in ALIVE):
                how = "stopped" if self.stopped.is_set() else "canceled"
                task, do = f"task {self.forget(unit)}", "the same command queues it again"
                unit.future.set_exception(Interrupted(task, f"it {how}", do=do))
            elif reason == LAUNCH_FAILED:
                slurm("scancel", "--quiet", unit.job)
                self.lose(unit, "SLURM could not launch its task on a node")
            elif state not in ALIVE:
                self.lose(unit, "its task left the queue without a result")

    def forget(self, unit: _QueuedUnit) -> str:
        """Forget the task of a unit, so that the unit is queued again; return the task's id."""
        job, unit.job = unit.job, ""
        (unit.folder / JOB).unlink(missing_ok=True)
        return job

    def lose(self, unit: _QueuedUnit, why: str) -> None:
        """Queue a unit again whose task ended without a result, unless that happened too often."""
        self.forget(unit)
        unit.num_lost += 1
        if unit.num_lost == MAX_ATTEMPTS:
            message = last_lines(unit.folder) or "no message"
            unit.future.set_exception(WorkerFailed(f"{why}, {MAX_ATTEMPTS} times: {message}"))

    def enqueue(self, units: list[_QueuedUnit]) -> None:
        folders = [unit.folder for unit in units]
        place = folders[0].parent.absolute()
        (place / STOP).unlink(missing_ok=True)
        from rankscope.run.workers.order import read_unit

        host_bytes = max(read_unit(folder).host_bytes for folder in folders)
        script = self.settings.script(folders, self.devices, host_bytes, self.max_running)
        # Not a line of the script, which could not quote it.
        words = [f"--chdir={place}"]
        if self.lacking:  # An option of the command replaces the script's
            excluded = re.findall(r"--exclude[= ](\S+)", " ".join(self.settings.options))
            words.append("--exclude=" + ",".join([*excluded, *sorted(self.lacking)]))
        job = slurm("sbatch", "--parsable", *words, stdin=script).partition(";")[0]
        for i, unit in enumerate(units):
            unit.job = f"{job}_{i}"
            replace_text(unit.folder / JOB, unit.job)
        self.next_question, self.pause = 0.0, FOLDER_SECONDS

    def ask_to_stop(self, units: list[_QueuedUnit]) -> None:
        """Take waiting tasks off the queue; let running ones write a checkpoint and end."""
        jobs = [unit.job for unit in units if unit.job]
        if not jobs:
            return
        replace_text(units[0].folder.parent / STOP, "")
        slurm("scancel", "--quiet", "--state=PENDING", *jobs)
        slurm("scancel", "--quiet", "--batch", "--signal=USR1", *jobs)
        self.is_asked = True
        self.next_question, self.pause = 0.0, FOLDER_SECONDS


def slurm(*command: str, stdin: str = "") -> str:
    """Run one of SLURM's commands, and return its output. Raises UserError: it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    why = done.stderr.strip()
    has_ended = (command[0], done.returncode, why) == ("scancel", 1, "")  # A task that it names
    if done.returncode and not has_ended:
        why = why or f"exit code {done.returncode}"
        raise UserError(f"executor slurm: {command[0]}", f"a failure: {why}")
    return done.stdout.strip()


@functools.cache
def most_tasks() -> int:
    """Return the most tasks of an array job at this site."""
    limit = re.search(r"MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config"))
    return max(1, int(limit[1])) if limit else DEFAULT_MAX_ARRAY_SIZE


def _time_limit_minutes(time: str) -> float:
    """Parse SLURM's times M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; infinity for a word, and for 0."""
    days, _, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (days or "0", *parts)) or len(parts) > 3:
        return inf
    numbers = [int(part) for part in parts]
    if days or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60 or inf
