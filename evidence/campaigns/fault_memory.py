"""Too little memory: commands whose address space is limited to ten sizes.

Each command must end with 0, or with 3: one message that says out of memory, or trials that are
``oom``. Without the limit the same command (``run --retry oom``) must then end as if nothing had
happened. A first group that leaks must not make the second one ``oom``.
"""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from command_line import Outcome
from launcher import COMMAND, Launcher
from pocket_study import SETTINGS

from fault_points import (
    Options,
    Point,
    Undisturbed,
    last_lines,
    message_fault,
    new_folders,
    tiny_study,
)
from rankscope.errors import OK, UNFINISHED
from rankscope.progress import LOG, logged
from rankscope.records import FAILED
from rankscope.store import Ledger, weights_path

ROOMS = (0, 20, 100, 250, 300, 330, 360, 420, 500, 700)
"""MB of address space beyond what a process has that imported everything. Commands refuse to begin
with less than 300."""
WITH_WORKERS = (20, 330, 700)
FRESH = (350, 600, 1000, 1300, 1600)
"""MB of address space of a process that has imported nothing."""

LEAKY = """
import resource, sys
import psutil
from rankscope.cli import study_verbs
from rankscope.progress import ConsoleReporter

class Leaky(ConsoleReporter):
    '''Keeps memory once the first group is trained; then there is none for another such group.'''
    kept = []
    def stage(self, name, total):
        super().stage(name, total)
        if name.startswith("group 1/") and name.endswith(" evaluate") and not self.kept:
            self.kept.append(bytearray(b"x") * (400 * 2**20))
            limit = psutil.Process().memory_info().vms + 60 * 10**6
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

study_verbs.ConsoleReporter = Leaky
import rankscope.cli
rankscope.cli.main()
"""
"""The command with a leak in its first group."""


WIDE = {**SETTINGS["arms"][0], "rank": [2, 4096]}
"""Rank 4096 takes 268 MB on the pocket model, rank 2 a hundred kB."""


def leaky_study(folder: Path) -> Path:
    """Two groups that need more than the leak leaves."""
    return tiny_study(folder, arms=[WIDE], max_group_size=1, memory_limit="1GB")


def points(options: Options) -> Iterator[Point]:
    """Every verb at every size, processes that have imported nothing, and the leak."""
    folders = new_folders(options.folder)
    with Launcher(options.folder) as launcher:
        file = tiny_study(options.folder, arms=[WIDE])
        # What a process that has run a study has freed would do for the next command.
        reference = Undisturbed.of(launcher, file, warm_up=False)
        address_space = address_space_of(launcher.process)

        def run(room: int, *workers: object) -> Point:
            out, limits = next(folders), {"RLIMIT_AS": address_space + room * 10**6}
            ran = launcher.run("run", reference.file, "--out", out, *workers, limits=limits)
            problem = run_fault(ran, out) or resumed_fault(launcher, reference, out)
            return point(room, "run with workers" if workers else "run", ran, problem)

        def verb(room: int, words: tuple[object, ...]) -> Point:
            limits = {"RLIMIT_AS": address_space + room * 10**6}
            out = ("--out", next(folders)) if words[0] == "export" else ()
            ran = launcher.run(*words, *out, limits=limits)
            return point(room, str(words[0]), ran, memory_fault(ran))

        def new_process(space: int) -> Point:
            out = next(folders)
            ran = fresh(("run", reference.file, "--out", out), space * 10**6)
            problem = run_fault(ran, out) or resumed_fault(launcher, reference, out)
            name = f"run of a new process in {space} MB"
            return Point(name, f"new process exit {ran.code}", problem)

        verbs = other_verbs(reference)
        jobs = [
            partial(leak, launcher, options.folder / "leak"),
            *(partial(run, room) for room in ROOMS),
            *(partial(run, room, "--workers", 2) for room in WITH_WORKERS),
            *(partial(verb, room, words) for room in ROOMS for words in verbs),
            *(partial(new_process, space) for space in FRESH),
        ]
        # In any order, so that a campaign that ends early has tried something of everything.
        random.Random(options.seed).shuffle(jobs)
        for job in jobs:
            yield job()


def fresh(words: tuple[object, ...], address_space: int, code: str = COMMAND) -> Outcome:
    """One command in a process that has imported nothing."""
    command = [sys.executable, "-c", code, *map(str, words)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))

    ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    return Outcome(ran.returncode, ran.stdout, ran.stderr)


def address_space_of(process: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def other_verbs(reference: Undisturbed) -> list[tuple[object, ...]]:
    """Words of verbs that read a study file, the finished study or its models."""
    study = reference.file.with_name("undisturbed")
    with Ledger.open(study, write=False) as ledger:
        (trial, *_) = ledger.trials()
    adapter = study / weights_path(trial)
    return [
        ("check", reference.file),
        ("plan", reference.file),
        ("status", study),
        ("report", study),
        ("verify", study),
        ("export", study, trial.trial_id, "--merge"),
        ("eval", "pocket", "--adapter", adapter, "--tasks", "pocket_cloze", "--max-items", 8),
        ("inspect", "pocket", adapter),
    ]


def point(room: int, name: str, outcome: Outcome, problem: str) -> Point:
    return Point(f"{name} with {room} MB of room", f"{name} exit {outcome.code}", problem)


def memory_fault(outcome: Outcome) -> str:
    """Say what is wrong with how a verb ended."""
    if outcome.code == OK:
        return ""
    if outcome.code != UNFINISHED:
        return f"exit {outcome.code}: {last_lines(outcome)}"
    return message_fault(outcome, "out of memory")


def run_fault(outcome: Outcome, out: Path) -> str:
    """Say what is wrong with a run's end: trials that do not fit are ``oom`` and nothing else."""
    if outcome.code != UNFINISHED or "error: " in outcome.err:
        return memory_fault(outcome)
    with Ledger.open(out, write=False) as ledger:
        failed = {t.status: t.failure for t in ledger.load().trials if t.status in FAILED}
    if set(failed) == {"oom"} and "out of memory" in str(failed["oom"]):
        return ""
    return f"exit 3 with failed trials {failed}"


def resumed_fault(launcher: Launcher, reference: Undisturbed, out: Path) -> str:
    """Say what is wrong once there is memory.

    Less memory may have cut other groups, whose trials come to the same results; smaller passes
    round otherwise.
    """
    ran = launcher.run("run", reference.file, "--out", out, "--retry", "oom")
    if ran.code != OK:
        return f"then exit {ran.code}: {last_lines(ran)}"
    is_rounded = any("not enough memory" in e["text"] for e in logged(out / LOG, "note"))
    return reference.differs(out, unrounded if is_rounded else without_groups)


def without_groups(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a study, but for which trials trained together."""
    groups = ("group_id", "group_size")

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if name not in groups}

    trials = {label: tuple(map(kept, fields)) for label, fields in results["trials"].items()}
    return {**results, "trials": trials}


def unrounded(results: dict[str, Any]) -> dict[str, Any]:
    """Results of a study that no order of summation changes."""
    exact = {name: results[name] for name in ("config", "model", "tasks")}
    trials = {label: fields[:3] for label, fields in results["trials"].items()}
    return {
        **exact,
        "trials": trials,
        "evals": set(results["evals"]),
        "files": set(results["files"]),
    }


def leak(launcher: Launcher, folder: Path) -> Point:
    """The first group keeps memory; the second is to be trained by the next process."""
    file, out = leaky_study(folder), folder / "out"
    launcher.start("run", file, "--out", out, code=LEAKY)
    ran = launcher.outcome()
    problem = memory_fault(ran) if ran.code else "the leak did not matter"
    status = launcher.run("status", out, "--json")
    counts = json.loads(status.out)["trials_by_status"]
    if counts != {"done": 1, "planned": 1}:
        problem = problem or f"trials are {counts}, expected one done and one planned"
    again = launcher.run("run", file, "--out", out)
    if again.code != OK:
        problem = problem or f"then exit {again.code}: {last_lines(again)}"
    return Point("a leak in the first of two groups", f"leak exit {ran.code}", problem)
