"""Places where the units of a study run: one executor per file.

An executor takes the folder of a unit and sees to it that ``rankscope work OUT UNIT`` runs there.
It starts the worker again if it dies, until the folder is sealed. It never opens the ledger of the
study: the driver verifies sealed results and commits them. So results do not depend on the
executor.

A subclass of :class:`ExecutorSettings` is the section ``executor: {NAME: {...}}`` of a study file.
Its module loads no torch.
"""

import os
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import Field, create_model, model_validator

from rankscope.config.section import ConfigSection
from rankscope.errors import UserError, did_you_mean
from rankscope.registry import parts

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig


class Executor(Protocol):
    name: str  # Name of its settings in the study file
    num_local: int  # Units that run at a time on this machine and share its memory, at least 1

    def submit(self, folder: Path) -> Future[None]:
        """Run the unit in ``folder``; the future ends once the folder is sealed.

        It ends with a RankscopeError that concerns the whole study, or with WorkerFailed.
        """

    def stop(self) -> None:
        """Ask all workers to save their state and end, and start no more of them."""

    def close(self) -> None:
        """Wait until all workers ended."""


class ExecutorSettings(ConfigSection):
    """Settings of an executor in the study file; no result depends on them."""

    name: ClassVar[str]

    @property
    def runs_elsewhere(self) -> bool:
        """Whether units run on machines with other devices than this one's."""
        return False

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        """Start the executor, for at most ``num_workers`` units at a time.

        Raises UserError: it cannot start.
        """
        raise NotImplementedError

    def script(self, folders: list[Path], devices: int, host_bytes: int, limit: int | None) -> str:
        """Write a job for the units in ``folders``. At most ``limit`` of them run at a time.

        Each runs on ``devices`` with ``host_bytes`` of memory. Raises UserError: this executor
        submits no script.
        """
        found, do = f"executor {self.name}", "'rankscope plan' shows what the others will do"
        raise UserError("--dry-run", found, "slurm, whose batch script it prints", do)

    def check_trusted(self, *keys: str) -> None:
        """Raise UserError for settings under these keys that the user did not allow.

        They come with the study file, which may be a stranger's.
        """
        from rankscope.evaluate.scorers import ALLOWED

        for key in keys:
            if getattr(self, key) and os.environ.get(ALLOWED) != "1":
                found = "a setting by which code of others can run"
                expected = "--trust-task-code with it"
                do = "read it first, then add that option"
                raise UserError(f"executor.{self.name}.{key}", found, expected, do)

    @classmethod
    def withdraw(cls, units: Path) -> None:
        """Take back units that wait for an earlier driver, because another executor runs them."""


class ExecutorChoice(ConfigSection):
    """One executor: its name, or its name with settings. Each file gives the section a key."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any] | None:
        return {text: {}}

    @model_validator(mode="before")
    @classmethod
    def _fill_empty(cls, value: Any) -> Any:
        """Accept ``slurm:`` without settings as SLURM with its defaults."""
        return {k: v or {} for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"expected exactly one of {', '.join(executors())}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> ExecutorSettings:
        settings: ExecutorSettings = getattr(self, self.name)
        return settings


def executors() -> dict[str, type[ExecutorSettings]]:
    """Return the settings of every executor by its name."""
    return parts(ExecutorSettings, __name__)


def executor_section() -> type[ExecutorChoice]:
    """Make the section ``executor`` of a study file, with a key for each executor."""
    fields: dict[str, Any] = {
        name: (kind | None, Field(None, description=kind.__doc__))
        for name, kind in executors().items()
    }
    section: type[ExecutorChoice] = create_model(
        "ExecutorConfig", __base__=ExecutorChoice, __doc__=ExecutorChoice.__doc__, **fields
    )
    return section


def with_executor(config: "StudyConfig", name: str | None) -> "StudyConfig":
    """Put the study on the executor of this name; None changes nothing.

    The settings of the study file stay if it names the same executor. Raises UserError: there is no
    such executor.
    """
    if name is None or (config.executor is not None and config.executor.name == name):
        return config
    if name not in executors():
        hint = did_you_mean(name, executors())
        raise UserError("--executor", repr(name), f"one of {', '.join(executors())}", hint)
    return config.model_copy(update={"executor": executor_section().model_validate(name)})


def start_executor(config: "StudyConfig", num_workers: int | None = None) -> Executor | None:
    """Start the study's executor; None if groups run in this process.

    Without an executor in the study, worker processes of this machine start if a number of them is
    asked for or a group takes several devices. Raises UserError: the number is below 1, or the
    executor cannot start on this machine.
    """
    if num_workers is not None and num_workers < 1:
        raise UserError("--workers", str(num_workers), "at least 1")
    if config.executor is None and num_workers is None and config.train.devices == 1:
        return None
    chosen = config.executor or executor_section().model_validate("local")
    return chosen.settings.start(config, num_workers)


def withdraw_units(units: Path, but: Executor | None) -> None:
    """Take back units that wait with another executor than the study's current one."""
    for name, kind in executors().items():
        if but is None or but.name != name:
            kind.withdraw(units)
