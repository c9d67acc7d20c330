"""One flipped bit in every file and in every page of the ledger of a study.

First ``verify`` alone looks at 32 bits of each page and file of a finished study, by turns. Then
commands run after one flip of each: the study is a finished one, one that was killed while it
trained (its ledger was not closed, and there is a checkpoint), or one whose workers were killed.
``verify`` must end with 4. ``run`` and ``report`` must end with 4, or come to what they come to
without the flip, as far as they do not read the bit. In the ledger of a killed run, unused space
has no hash: there, too, nothing may change.
"""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
from launcher import Launcher, stopping_after
from pocket_study import results

from fault_points import Options, Point, Undisturbed, last_lines, new_folders, tiny_study
from fault_workers import COMMAND
from rankscope.errors import INTEGRITY, OK
from rankscope.store import find_problems

LEDGER = "ledger.sqlite"
BITS = 32
"""Bits of each page and file that ``verify`` alone looks at."""
IRRELEVANT = ("ledger.lock", "worker.log", "-shm")
"""Files that no command reads for what is in them: the lock counts, not the name in it; SQLite
makes the last one anew."""


def points(options: Options) -> Iterator[Point]:
    """All series."""
    with Launcher(options.folder, code=COMMAND) as launcher:
        reference = Undisturbed.of(launcher, tiny_study(options.folder))
        finished = reference.file.with_name("undisturbed")
        killed = options.folder / "killed"
        code = stopping_after(2, launcher.code)
        launcher.start("run", reference.file, "--out", killed, code=code)
        launcher.wait_until_stopped()
        launcher.send(signal.SIGKILL)
        launcher.ended()
        workers = options.folder / "workers"
        kill_with_workers(launcher, reference.file, workers)
        yield from Series("verify", finished, launcher, reference, options).verified(BITS)
        for name, study in (("finished", finished), ("killed", killed), ("workers", workers)):
            yield from Series(name, study, launcher, reference, options).points()


def kill_with_workers(launcher: Launcher, file: Path, out: Path) -> None:
    """Kill a run and its worker while a unit trains."""
    code = stopping_after(2, launcher.code)
    launcher.start("run", file, "--out", out, "--workers", 1, code=code)
    launcher.wait_until_stopped()
    driver = psutil.Process(launcher.child)
    for process in [*driver.children(recursive=True), driver]:
        process.send_signal(signal.SIGKILL)
    launcher.ended()


class Series:
    """Flips in one study."""

    def __init__(
        self,
        name: str,
        study: Path,
        launcher: Launcher,
        reference: Undisturbed,
        options: Options,
    ) -> None:
        self.name, self.study = name, study
        self.launcher, self.reference, self.options = launcher, reference, options
        self.bits = random.Random(options.seed)
        self.folders = new_folders(options.folder / f"{name}-copies")

    def points(self) -> Iterator[Point]:
        flips = list(self.flips())
        for number in self.options.spread(len(flips)):
            path, place, bit = flips[number - 1]
            out = next(self.folders)
            shutil.copytree(self.study, out)
            flip(out / path, place, bit)
            kind = "ledger page" if path.name == LEDGER else "file"
            codes, problem = self.fault(out, path)
            what = f"{self.name}: bit {bit} of byte {place} of {path}"
            yield Point(what, f"{self.name} {kind}: {codes}", problem)

    def verified(self, num_bits: int) -> Iterator[Point]:
        """``verify`` after each of ``num_bits`` flips of each page and file."""
        for _ in range(num_bits):
            for path, place, bit in self.flips():
                file = self.study / path
                flip(file, place, bit)
                is_noticed = bool(find_problems(self.study))
                flip(file, place, bit)
                what = f"bit {bit} of byte {place} of {path}"
                kind = "ledger page" if path.name == LEDGER else "file"
                outcome = f"verify alone, {kind}: {'noticed' if is_noticed else 'missed'}"
                yield Point(what, outcome, "" if is_noticed else "verify finds nothing")

    def flips(self) -> Iterator[tuple[Path, int, int]]:
        """(file, byte, bit): one per file, and one per page of 4,096 bytes of each ledger."""
        for path in sorted(self.study.rglob("*")):
            if path.is_file() and not path.name.endswith(IRRELEVANT):
                size = path.stat().st_size
                step = 4096 if path.name == LEDGER else max(1, size)
                for begin in range(0, size, step):
                    byte = begin + self.bits.randrange(min(step, size - begin))
                    yield path.relative_to(self.study), byte, self.bits.randrange(8)

    def fault(self, out: Path, path: Path) -> tuple[str, str]:
        """The codes of ``verify``, ``report`` and ``run``, and what is wrong with them."""
        verified = self.launcher.run("verify", out)
        problem = ""
        if verified.code != INTEGRITY and not self.may_be_unused(path):
            problem = f"verify ends with {verified.code}: {last_lines(verified)}"
        copy = out.with_name("report")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        reported = self.launcher.run("report", copy)
        run = self.launcher.run("run", self.reference.file, "--out", out)
        if (
            reported.code == OK
            and self.name == "finished"
            and results(copy) != self.reference.results
        ):
            problem = problem or "report shows other results"
        if run.code == OK and results(out) != self.reference.results:
            problem = problem or "run ends with other results"
        for verb, outcome in (("report", reported), ("run", run)):
            if outcome.code not in (OK, INTEGRITY) or "Traceback" in outcome.err:
                problem = problem or f"{verb} ends with {outcome.code}: {last_lines(outcome)}"
        return f"verify {verified.code}, report {reported.code}, run {run.code}", problem

    def may_be_unused(self, path: Path) -> bool:
        """Whether a bit of a file may be of no use, and then has no hash: in a ledger that was not
        closed, its write-ahead log, and the log of a run. The driver compares a worker's order with
        its own, and makes the unit anew if they differ."""
        is_closed = self.name == "finished"
        return not is_closed and path.name in (
            LEDGER,
            f"{LEDGER}-wal",
            "log.jsonl",
            "study.resolved.yaml",
            "unit.json",
        )


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
