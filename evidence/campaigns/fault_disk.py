"""Full and failing disks: every change that a command makes to its folder fails once, by turns.

Each series makes the Nth change fail, for N over the whole life of the command, with ENOSPC (no
space) and EIO (a failing disk): by turns it alone, and it and all later ones. The command must end
with 3 and one message, or with 0 if the change does not matter (a line of the log); the same
command must then end as if nothing had happened. Many changes leave the same state behind, such as
all those of a staged file: from each state the command is continued once. With ``--points N`` each
fault gets one change each of N kinds, others in each turn; a kind is a call on files of one name or
ending.
"""

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    state_of,
    tiny_study,
)
from fault_shim import FaultShim
from fault_workers import COMMAND
from rankscope.errors import BAD_INPUT, INTEGRITY, OK, UNFINISHED
from rankscope.store import Ledger, weights_path


class Fault(NamedTuple):
    """How a change fails."""

    number: int
    """errno."""
    lasts: bool
    """All later ones fail, too."""


FAULTS = [Fault(number, lasts) for lasts in (True, False) for number in (errno.ENOSPC, errno.EIO)]
OWN_NAME = re.compile(r"[0-9a-f]{8,}|\d+|^.*(?=\.parquet)|(?<=\.tmp)\w+")
WORKER_POINTS = 25
"""Most points of a fault with worker processes."""

Job = Callable[[], Point]
Command = Callable[[Path], tuple[object, ...]]
"""The words of a command by the folder that it writes to."""


def points(options: Options) -> Iterator[Point]:
    """All series, one after another."""
    shim = FaultShim(options.folder)
    with Launcher(options.folder, shim.environment, COMMAND) as launcher:
        reference = Undisturbed.of(launcher, tiny_study(options.folder))
        disk = Disk(shim, launcher, reference, options)
        study = reference.file.with_name("undisturbed")
        with Ledger.open(study, write=False) as ledger:
            (trial, *_) = ledger.trials()
        export = ("export", study, trial.trial_id, "--out")
        score = ("eval", "pocket", "--adapter", study / weights_path(trial), "--tasks")
        jobs = [
            *disk.study("run"),
            *disk.study("run with workers", WORKER_POINTS, "--workers", 2),
            *disk.command(
                "report", lambda out: ("report", out / "study", "--tables", out / "tables"), study
            ),
            *disk.command("export", lambda out: (*export, out / "exported")),
            *disk.command(
                "eval",
                lambda out: (*score, "pocket_cloze", "--max-items", 4, "--out", out / "scores"),
            ),
        ]
        # In any order, so that a campaign that ends early has tried something of everything.
        random.Random(options.seed).shuffle(jobs)
        for job in jobs:
            yield job()


class Disk:
    """Runs the series of one campaign."""

    def __init__(
        self, shim: FaultShim, launcher: Launcher, reference: Undisturbed, options: Options
    ) -> None:
        self.shim, self.launcher = shim, launcher
        self.reference, self.options = reference, options
        self.folders = new_folders(options.folder)
        self.continued: dict[str, str] = {}
        """Faults once the command continued, by the state that it found; '' is nothing."""

    def study(self, name: str, most: int | None = None, *words: object) -> Iterator[Job]:
        """Faults while a study runs."""

        def command(out: Path) -> tuple[object, ...]:
            return ("run", self.reference.file, "--out", out, *words)

        def point(at: int, fault: Fault) -> Point:
            out = next(self.folders)
            outcome = self.faulty(command, out, at, fault)
            problem = fault_of(outcome, out, fault.number)
            state = "" if words else state_of(out)
            if is_new := state not in self.continued or not state:
                self.continued[state] = status_fault(
                    self.launcher.run("status", out)
                ) or self.reference.resumed(self.launcher, out, *words)
            point = self.point(name, at, fault, outcome, problem or self.continued[state])
            return replace(point, outcome=point.outcome + " and continued" * is_new)

        changes = self.changes(command)
        for turn, fault in enumerate(FAULTS):
            for at in self.numbers(changes, turn, most):
                yield partial(point, at, fault)

    def command(self, name: str, command: Command, study: Path | None = None) -> Iterator[Job]:
        """Faults in a command that writes something else; ``study`` is copied to ``out/study``."""

        def prepared() -> Path:
            out = next(self.folders)
            out.mkdir()
            if study is not None:
                shutil.copytree(study, out / "study")
            return out

        def point(at: int, fault: Fault) -> Point:
            out = prepared()
            outcome = self.faulty(command, out, at, fault)
            problem = fault_of(outcome, out, fault.number)
            again = outcome
            if outcome.code != OK:
                again = self.launcher.run(*command(out), folder=out)
            if again.code != OK:
                problem = problem or f"again: {again.code}: {last_lines(again)}"
            elif extra := {
                name
                for name in file_names(out) ^ expected
                # A disk without room for the hashes of a closed ledger leaves it without.
                if again is not outcome or not name.endswith("ledger.sha256")
            }:
                problem = problem or f"other files: {sorted(extra)}"
            return self.point(name, at, fault, outcome, problem)

        whole = prepared()
        changes = self.changes(command, whole)
        expected = file_names(whole)
        for turn, fault in enumerate(FAULTS):
            for at in self.numbers(changes, turn):
                yield partial(point, at, fault)

    def changes(self, command: Command, out: Path | None = None) -> list[str]:
        """The changes that the command makes."""
        out = out or next(self.folders)
        self.shim.arm(out)
        ran = self.launcher.run(*command(out), folder=out if out.is_dir() else None)
        self.shim.disarm()
        assert ran.code == OK, ran.err
        return self.shim.changes

    def numbers(self, changes: list[str], turn: int, most: int | None = None) -> list[int]:
        """Which changes fail, from 1: each of them once with either error, half of those alone and
        half with all later ones; or one of each kind, in each turn another one."""
        points = self.options.points
        if points is None and most is None:
            return [at for at in range(1, len(changes) + 1) if (at + turn + turn // 2) % 2 == 0]
        kinds: dict[str, list[int]] = {}
        for at, change in enumerate(changes, 1):
            kinds.setdefault(kind_of(change), []).append(at)
        places, turns = list(kinds.values()), len(FAULTS)
        count = min(len(places), *(number for number in (points, most) if number is not None))
        shift = turn * len(places) // turns
        chosen = [places[(i * len(places) + shift) // count] for i in range(count)]
        return sorted({kind[turn * (len(kind) - 1) // (turns - 1)] for kind in chosen})

    def faulty(self, command: Command, out: Path, at: int, fault: Fault) -> Outcome:
        """The command with one fault."""
        self.shim.arm(out, at, fault.number, lasts=fault.lasts)
        ran = self.launcher.run(*command(out), folder=out if out.is_dir() else None)
        self.shim.disarm()
        return ran

    def point(self, name: str, at: int, fault: Fault, outcome: Outcome, problem: str) -> Point:
        mode = " and all later ones" if fault.lasts else ""
        code = errno.errorcode[fault.number]
        what = f"{name}: {code} at change {at}{mode}, {self.shim.failure or 'not reached'}"
        return Point(what, f"{name} {code} exit {outcome.code}", problem)


def fault_of(outcome: Outcome, out: Path, number: int) -> str:
    """Say what is wrong with how the command ended."""
    if outcome.code == OK:
        return "a traceback" if "Traceback" in outcome.err else ""
    if outcome.code not in (UNFINISHED, INTEGRITY):
        return f"exit {outcome.code}: {last_lines(outcome)}"
    free = ("bytes free",) if number == errno.ENOSPC else ()
    return message_fault(outcome, out, AGAIN, *free)


def status_fault(outcome: Outcome) -> str:
    """Say what is wrong with what ``status`` says of the study then."""
    none_yet = outcome.code == BAD_INPUT and (
        "found no study here" in outcome.err or "no run has stored a study" in outcome.err
    )
    if outcome.code == OK or none_yet:
        return ""
    return f"status then ends in {outcome.code}: {last_lines(outcome)}"


def kind_of(change: str) -> str:
    """A change without the names of trials, groups, tasks and steps."""
    call, _, path = change.partition(" of ")
    return f"{call} of {OWN_NAME.sub('', Path(path).name)}"


def file_names(folder: Path) -> set[str]:
    """Files below, but for SQLite's own."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {os.fspath(name) for name in files if not name.name.startswith("ledger.sqlite-")}
