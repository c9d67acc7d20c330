"""Where the units of a study run: one executor per file.

An executor takes the folder of a unit and sees to it that ``rankscope work OUT UNIT`` runs there,
again if the worker dies, until the folder is sealed. It never opens the ledger of the study: the
driver verifies sealed results and commits them. So results do not depend on the executor.

To add one, write a module with a class like :class:`Executor` and register it::

    register_executor("mine", MyExecutor)
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

import torch

from rankscope.config.slurm import SlurmConfig
from rankscope.config.study import StudyConfig
from rankscope.errors import AGAIN, BaseFailed, OutOfMemory, UserError
from rankscope.run.context import RunContext
from rankscope.run.groups import BASE_GROUP, Group
from rankscope.run.units import adopt_results, adopt_unit, open_unit, unit_label, wait_for_worker
from rankscope.store import TrialFailure

POLL_SECONDS = 0.2


class WorkerFailed(Exception):
    """A unit did not come to its end however often it was tried; ``status`` is that of its trials
    that are not trained."""

    def __init__(self, reason: str, status: Literal["oom", "failed"] = "failed") -> None:
        super().__init__(reason)
        self.status = status


class Executor(Protocol):
    num_local: int  # Units that run at a time on this machine and share its memory, at least 1
    runs_elsewhere: bool  # Units may run on machines with other devices than this one's

    def submit(self, folder: Path) -> Future[None]:
        """Run the unit in ``folder``; the future ends once the folder is sealed.

        It ends with a RankscopeError that concerns the whole study, or with WorkerFailed.
        """

    def stop(self) -> None:
        """Ask all workers to save their state and end, and start no more of them."""

    def close(self) -> None:
        """Return once all workers ended."""


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What the command line and the study file ask of an executor."""

    num_workers: int | None = None  # Most units at a time; None lets the executor decide
    device: str = "auto"
    ray_address: str | None = None  # Of a running cluster
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    devices: int = 1  # Of each unit

    @classmethod
    def of(
        cls, config: StudyConfig, num_workers: int | None = None, ray_address: str | None = None
    ) -> "ExecutorOptions":
        devices = config.train.devices
        return cls(num_workers, config.device, ray_address, config.slurm, devices)

    def threads(self, num_workers: int) -> int:
        """Threads of each worker, and of each of its ranks: OMP_NUM_THREADS, else a share of this
        machine's."""
        stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        return (
            int(stated)
            if stated.isdecimal()
            else max(1, torch.get_num_threads() // (num_workers * self.devices))
        )


_EXECUTORS: dict[str, Callable[[ExecutorOptions], Executor]] = {}


def register_executor(name: str, factory: Callable[[ExecutorOptions], Executor]) -> None:
    _EXECUTORS[name] = factory


def executor_names() -> list[str]:
    for name in ("local", "ray", "slurm"):
        import_module(f"rankscope.run.executors.{name}")
    return sorted(_EXECUTORS)


def check_executor(name: str) -> None:
    if name not in executor_names():
        raise UserError(f"executor {name!r}: expected one of {', '.join(executor_names())}")


def runs_elsewhere(name: str) -> bool:
    """:attr:`Executor.runs_elsewhere` by name, before there is an executor."""
    check_executor(name)
    return bool(getattr(_EXECUTORS[name], "runs_elsewhere", False))


def new_executor(name: str, options: ExecutorOptions) -> Executor:
    """An executor by its name. Raises UserError: there is none of that name, no worker, or it
    cannot start."""
    check_executor(name)
    if options.num_workers is not None and options.num_workers < 1:
        raise UserError(f"--workers {options.num_workers}: expected at least 1")
    if options.ray_address is not None and name != "ray":
        raise UserError(f"--ray-address: found --executor {name}, expected --executor ray")
    return _EXECUTORS[name](options)


def run_units(
    context: RunContext, config: StudyConfig, groups: list[Group], executor: Executor
) -> None:
    """Run each group as a unit, and commit its results as soon as it is sealed.

    Args:
        context: of the driver.
        config: the study file as read.
        groups: those with something left to do, and ``BASE_GROUP``.
        executor: where they run.

    Raises:
        Interrupted: the user asked to stop; workers have saved their state.
        RankscopeError: a worker met an error that concerns the whole study.
    """
    if not groups:
        return
    context.label = f"{context.round.label} all groups".strip()
    context.begin_stage("units", len(groups))
    pending: dict[Future[None], tuple[Path, Group]] = {}
    short: Path | None = None
    may_be_short = len(groups) > 1
    try:
        for group in groups:
            folder = open_unit(context, config, group)
            pending[executor.submit(folder)] = (folder, group)
        while pending:
            context.check_stop()
            for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
                folder, group = pending.pop(future)
                is_short = isinstance(future.exception(), OutOfMemory)
                if may_be_short and not group and is_short:
                    short = folder
                else:
                    _finish_unit(context, future, folder, group)
            if short and not pending:  # other units may have taken the base's memory
                pending[executor.submit(short)] = (short, BASE_GROUP)
                short, may_be_short = None, False
    except BaseException:
        executor.stop()
        executor.close()
        raise
    context.reporter.finish()


def _finish_unit(context: RunContext, future: Future[None], folder: Path, group: Group) -> None:
    """Commit the results of a unit. If its workers kept dying, commit what they finished and mark
    the trials without weights as failed; without the base's scores there is no study."""
    try:
        future.result()
    except WorkerFailed as error:
        # What started the worker may have been killed without it.
        wait_for_worker(context, folder)
        if not group:  # the folder stays, for its worker's messages
            raise BaseFailed(
                f"scoring the base: {error}; see {folder / 'worker.log'}, {AGAIN}"
            ) from error
        adopt_results(context, folder)
        statuses = context.ledger.statuses()
        untrained = [t.trial_id for t in group if statuses[t.trial_id] == "planned"]
        context.ledger.fail_trials([TrialFailure(i, error.status, str(error)) for i in untrained])
        context.reporter.note(f"{unit_label(group)}: {error}")
    else:
        adopt_unit(context, folder)
    context.pieces_done += 1
    context.reporter.advance(context.pieces_done, unit_label(group))
