"""Full and failing disks: every change that a command makes to its folder fails once, by turns.

Each series makes the Nth change fail, for N over the whole life of the command, with ENOSPC (no
space) and EIO (a failing disk): it alone, or it and all later ones. The command must end with 3 and
one message, or with 0 if the change does not matter (a line of the log); the same command must then
end as if nothing had happened.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from command_line import Outcome
from launcher import Launcher

from fault_points import (
    AGAIN,
    Options,
    Point,
    Undisturbed,
    last_lines,
    message_fault,
    new_folders,
    tiny_study,
)
from fault_shim import FaultShim
from rankscope.errors import BAD_INPUT, INTEGRITY, OK, UNFINISHED
from rankscope.store import Ledger, adapter_path

FAULTS = [(number, lasts) for number in (errno.ENOSPC, errno.EIO) for lasts in (True, False)]
WORKER_POINTS = 12
"""Most points of a fault with worker processes, which import everything anew each time."""

Command = Callable[[Path], tuple[object, ...]]
"""The words of a command by the folder that it writes to."""


def points(options: Options) -> Iterator[Point]:
    """All series, one after another."""
    shim = FaultShim(options.folder)
    with Launcher(options.folder, shim.environment) as launcher:
        reference = Undisturbed.of(launcher, tiny_study(options.folder))
        disk = Disk(shim, launcher, reference, options)
        yield from disk.study("run")
        yield from disk.study("run with workers", WORKER_POINTS, "--workers", 2)
        study = reference.file.with_name("undisturbed")
        tables = ("--tables", "tables")
        yield from disk.command("report", lambda out: ("report", out / "study", *tables), study)
        with Ledger.open(study, write=False) as ledger:
            (trial, *_) = ledger.trials()
        adapter = study / adapter_path(trial.trial_id)
        yield from disk.command(
            "export", lambda out: ("export", study, trial.trial_id, "--out", out / "exported")
        )
        words = ("eval", "pocket", "--adapter", adapter, "--tasks", "pocket_cloze", "--max-items")
        yield from disk.command("eval", lambda out: (*words, 4, "--out", out / "scores"))


class Disk:
    """Runs the series of one campaign."""

    def __init__(
        self, shim: FaultShim, launcher: Launcher, reference: Undisturbed, options: Options
    ) -> None:
        self.shim, self.launcher = shim, launcher
        self.reference, self.options = reference, options
        self.folders = new_folders(options.folder)

    def study(self, name: str, most: int | None = None, *words: object) -> Iterator[Point]:
        """Faults while a study runs."""

        def command(out: Path) -> tuple[object, ...]:
            return ("run", self.reference.file, "--out", out, *words)

        total = self.changes(command)
        for number, lasts in FAULTS:
            for at in self.numbers(total, most):
                out = next(self.folders)
                outcome = self.faulty(command, out, at, number, lasts)
                problem = fault_of(outcome, out, number)
                problem = problem or status_fault(self.launcher.run("status", out))
                problem = problem or self.reference.resumed(self.launcher, out, *words)
                yield self.point(name, at, number, lasts, outcome, problem)

    def command(self, name: str, command: Command, study: Path | None = None) -> Iterator[Point]:
        """Faults in a command that writes something else; ``study`` is copied to ``out/study``."""

        def prepared() -> Path:
            out = next(self.folders)
            out.mkdir()
            if study is not None:
                shutil.copytree(study, out / "study")
            return out

        total = self.changes(command, prepared())
        whole = prepared()
        assert self.launcher.run(*command(whole), folder=whole).code == OK
        expected = file_names(whole)
        for number, lasts in FAULTS:
            for at in self.numbers(total):
                out = prepared()
                outcome = self.faulty(command, out, at, number, lasts)
                problem = fault_of(outcome, out, number)
                again = self.launcher.run(*command(out), folder=out)
                if again.code != OK:
                    problem = problem or f"again: {again.code}: {last_lines(again)}"
                elif extra := file_names(out) ^ expected:
                    problem = problem or f"other files: {sorted(extra)}"
                yield self.point(name, at, number, lasts, outcome, problem)

    def changes(self, command: Command, out: Path | None = None) -> int:
        """How many changes the command makes."""
        out = out or next(self.folders)
        self.shim.arm(out)
        ran = self.launcher.run(*command(out), folder=out if out.is_dir() else None)
        self.shim.disarm()
        assert ran.code == OK, ran.err
        return self.shim.count

    def numbers(self, total: int, most: int | None = None) -> list[int]:
        """Which changes fail."""
        spread = self.options.spread(total)
        return spread[:: max(1, -(-len(spread) // most))] if most else spread

    def faulty(self, command: Command, out: Path, at: int, number: int, lasts: bool) -> Outcome:
        """The command with one fault."""
        self.shim.arm(out, at, number, lasts=lasts)
        ran = self.launcher.run(*command(out), folder=out if out.is_dir() else None)
        self.shim.disarm()
        return ran

    def point(
        self, name: str, at: int, number: int, lasts: bool, outcome: Outcome, problem: str
    ) -> Point:
        mode = " and all later ones" if lasts else ""
        code = errno.errorcode[number]
        what = f"{name}: {code} at change {at}{mode}, {self.shim.failure or 'not reached'}"
        return Point(what, f"{name} {code} exit {outcome.code}", problem)


def fault_of(outcome: Outcome, out: Path, number: int) -> str:
    """What is wrong with how the command ended."""
    if outcome.code == OK:
        return "a traceback" if "Traceback" in outcome.err else ""
    if outcome.code not in (UNFINISHED, INTEGRITY):
        return f"exit {outcome.code}: {last_lines(outcome)}"
    free = ("bytes free",) if number == errno.ENOSPC else ()
    return message_fault(outcome, out, AGAIN, *free)


def status_fault(outcome: Outcome) -> str:
    """What is wrong with what ``status`` says of the study then."""
    none_yet = outcome.code == BAD_INPUT and (
        "there is no study here" in outcome.err or "no run has stored a study" in outcome.err
    )
    if outcome.code == OK or none_yet:
        return ""
    return f"status then ends in {outcome.code}: {last_lines(outcome)}"


def file_names(folder: Path) -> set[str]:
    """Files below, but for SQLite's own."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {os.fspath(name) for name in files if not name.name.startswith("ledger.sqlite-")}
