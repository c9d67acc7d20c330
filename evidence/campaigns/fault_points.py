"""Options, points and the study that faults happen to; all families of ``faults.py`` share them."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[2] / "tests" / "fixtures"))

from command_line import Outcome
from launcher import Launcher
from pocket_study import SETTINGS, UNANALYZED, changed, leftovers, results, study_file

from rankscope.errors import OK, RankscopeError
from rankscope.hashing import SUMS, sha256_file
from rankscope.store import Ledger, find_problems

AGAIN = "then give the same command again"


@dataclass(frozen=True)
class Options:
    """Options of the campaign."""

    points: int | None
    """Most points of one series, spread over the whole of it; None: every one."""
    seed: int
    folder: Path
    """To work in; removed at the end."""

    def spread(self, total: int) -> list[int]:
        """Numbers from 1 to ``total``: all, or ``points`` of them at even distances."""
        if self.points is None or self.points >= total:
            return list(range(1, total + 1))
        return sorted({1 + i * total // self.points for i in range(self.points)})


@dataclass(frozen=True)
class Point:
    """One fault and what came of it."""

    what: str
    """The fault, such as ``ENOSPC from change 17 on: fsync of /x/y``."""
    outcome: str
    """A word or two, by which points are counted, such as ``exit 3``."""
    problem: str = ""
    """A sentence says what is not as it must be."""


def tiny_study(folder: Path, **changes: Any) -> Path:
    """The study file: an adapter and full fine-tuning, two steps each with a checkpoint."""
    settings = {
        "arms": [SETTINGS["arms"][0], SETTINGS["arms"][2]],
        "seeds": [0],
        **changed("train", max_steps=2),
        **changed("evaluate", max_items=4, cross_domain=[], retention=[]),
        "analyze": {name: off for name, off in UNANALYZED.items() if name == "spectra"},
    }
    return study_file(folder, **{**settings, **changes})


@dataclass(frozen=True)
class Undisturbed:
    """Results of a run that nothing disturbed."""

    file: Path
    results: dict[str, Any]

    @classmethod
    def of(cls, launcher: Launcher, file: Path, *, warm_up: bool = True) -> "Undisturbed":
        """Run the study of ``file`` beside it; with ``warm_up`` first in the launcher itself."""
        if warm_up:
            launcher.warm_up("run", file, "--out", file.with_name("warm-up"))
        out = file.with_name("undisturbed")
        ran = launcher.run("run", file, "--out", out)
        assert ran.code == OK, ran.err
        return cls(file, results(out))

    def differs(
        self, out: Path, compared: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> str:
        """How a finished study differs from it, in what is ``compared``; '' if it does not."""
        expected, found = compared(self.results), compared(results(out))
        parts = [name for name, value in expected.items() if found[name] != value]
        if parts:
            return f"other results: {', '.join(parts)}"
        if left := leftovers(out):
            return f"left behind: {', '.join(left)}"
        with Ledger.open(out, write=False) as ledger:
            return "; ".join(map(str, find_problems(ledger.out)))

    def resumed(self, launcher: Launcher, out: Path, *words: object) -> str:
        """Give the command again; what is wrong with the result, or ''."""
        ran = launcher.run("run", self.file, "--out", out, *words)
        if ran.code != OK:
            return f"the same command then ends in {ran.code}: {last_lines(ran)}"
        return self.differs(out)


TIMED = {"log.jsonl", "worker.log", "ledger.lock", "ledger.sha256", "ledger.sqlite", SUMS}
TIMED |= {"ledger.sqlite-shm", "ledger.sqlite-wal", "recommendation.json", "report.html"}
"""Files whose bytes differ between two runs that come to the same."""


def state_of(out: Path) -> str:
    """Hash of all that a command finds which continues a study, but for times."""
    files: list[tuple[str, str]] = []
    rows: list[Any]
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "meta.json":
            counters = json.loads(path.read_bytes())
            counters["trials"].pop("seconds")
            files.append((name, json.dumps(counters)))
        elif path.is_file():
            files.append((name, "" if path.name in TIMED else sha256_file(path)))
    try:
        with Ledger.open(out, write=False) as ledger:
            groups = ledger.groups()
            trials = [(t.spec.trial_id, t.status, t.failure) for t in ledger.load().trials]
            rows = [*trials, groups and groups.groups, *ledger.record_settings()]
        rows += results(out).items()
    except RankscopeError as error:
        rows = [str(error).replace(str(out), "")]
    return hashlib.sha256(repr((files, rows)).encode()).hexdigest()


def message_fault(outcome: Outcome, *texts: object) -> str:
    """Say what is wrong with the message of a command that failed, or ''.

    There must be one, no traceback, and in it the ``texts``, such as a path.
    """
    if "Traceback" in outcome.err:
        return f"a traceback: {last_lines(outcome)}"
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        return f"{len(errors)} messages: {last_lines(outcome)}"
    absent = [text for text in map(str, texts) if text not in errors[0]]
    return f"no {absent[0]!r} in: {errors[0]}" if absent else ""


def last_lines(outcome: Outcome) -> str:
    """The end of what a command printed, in one line."""
    return " | ".join((outcome.out + outcome.err).strip().splitlines()[-3:])[-600:]


def new_folders(folder: Path) -> Iterator[Path]:
    """Names of folders to write studies to; each is removed when the next one is asked for."""
    number = 0
    while True:
        number += 1
        place = folder / f"study-{number}"
        yield place
        shutil.rmtree(place, ignore_errors=True)
