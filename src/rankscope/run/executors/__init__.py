"""Where the units of a study run: one executor per file.

An executor takes the folder of a unit and sees to it that ``rankscope work OUT UNIT`` runs there,
again if the worker dies, until the folder is sealed. It never opens the ledger of the study: the
driver verifies sealed results and commits them. So results do not depend on the executor.

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
    name: str  # Of its settings in the study file
    num_local: int  # Units that run at a time on this machine and share its memory, at least 1

    def submit(self, folder: Path) -> Future[None]:
        """Run the unit in ``folder``; the future ends once the folder is sealed.

        It ends with a RankscopeError that concerns the whole study, or with WorkerFailed.
        """

    def stop(self) -> None:
        """Ask all workers to save their state and end, and start no more of them."""

    def close(self) -> None:
        """Return once all workers ended."""


class ExecutorSettings(ConfigSection):
    """What the study file says of an executor; no result depends on it."""

    name: ClassVar[str]

    @property
    def runs_elsewhere(self) -> bool:
        """Whether units run on machines with other devices than this one's."""
        return False

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        """The executor, for at most ``num_workers`` units at a time. Raises UserError: it cannot
        start."""
        raise NotImplementedError

    def script(self, folders: list[Path], devices: int, host_bytes: int, limit: int | None) -> str:
        """A job for the units in ``folders``, each on ``devices`` with ``host_bytes`` of memory; at
        most ``limit`` of them run at a time. Raises UserError: this executor submits no script."""
        found, do = f"executor {self.name}", "'rankscope plan' shows what the others will do"
        raise UserError("--dry-run", found, "slurm, whose batch script it prints", do)

    def check_trusted(self, *keys: str) -> None:
        """Raise UserError for settings under these keys that the user did not allow: they come
        with the study file, which may be a stranger's."""
        from rankscope.evaluate.scorers import ALLOWED

        for key in keys:
            if getattr(self, key) and os.environ.get(ALLOWED) != "1":
                raise UserError(
                    f"executor.{self.name}.{key}",
                    "a setting by which code of others can run",
                    "--trust-task-code with it",
                    "read it first, then add that option",
                )

    @classmethod
    def withdraw(cls, units: Path) -> None:
        """Take back units that wait for an earlier driver, as another executor runs them."""


class ExecutorChoice(ConfigSection):
    """One executor: its name, or its name with settings; a section with a key for each file."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any] | None:
        return {text: {}}

    @model_validator(mode="before")
    @classmethod
    def _fill_empty(cls, value: Any) -> Any:
        """``slurm:`` without settings is SLURM with its defaults."""
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
    """The settings of every executor by its name."""
    return parts(ExecutorSettings, __name__)


def executor_section() -> type[ExecutorChoice]:
    """The section ``executor`` of a study file, with a key for each executor."""
    fields: dict[str, Any] = {
        name: (kind | None, Field(None, description=kind.__doc__))
        for name, kind in executors().items()
    }
    section: type[ExecutorChoice] = create_model(
        "ExecutorConfig", __base__=ExecutorChoice, __doc__=ExecutorChoice.__doc__, **fields
    )
    return section


def with_executor(config: "StudyConfig", name: str | None) -> "StudyConfig":
    """The study on the executor of this name, with the settings of its file if that names it, too;
    None changes nothing. Raises UserError: there is no such executor."""
    if name is None or (config.executor is not None and config.executor.name == name):
        return config
    if name not in executors():
        hint = did_you_mean(name, executors())
        raise UserError("--executor", repr(name), f"one of {', '.join(executors())}", hint)
    return config.model_copy(update={"executor": executor_section().model_validate(name)})


def start_executor(config: "StudyConfig", num_workers: int | None = None) -> Executor | None:
    """The study's executor; without one worker processes of this machine if a number of them is
    asked for or a group takes several devices, else None: groups run in this process.
    Raises UserError: no worker is asked for, or it cannot start on this machine."""
    if num_workers is not None and num_workers < 1:
        raise UserError("--workers", str(num_workers), "at least 1")
    if config.executor is None and num_workers is None and config.train.devices == 1:
        return None
    chosen = config.executor or executor_section().model_validate("local")
    return chosen.settings.start(config, num_workers)


def withdraw_units(units: Path, but: Executor | None) -> None:
    """Take back units that wait with another executor than the one that runs the study now."""
    for name, kind in executors().items():
        if but is None or but.name != name:
            kind.withdraw(units)
