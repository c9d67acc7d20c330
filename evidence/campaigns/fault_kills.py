"""SIGKILL at random moments of a run's life, and again while it continues.

By turns the points are runs in one process and with two workers. There, by turns, the driver is
killed, one worker, or all of them. A run that lost a worker must end by itself. Every fourth run is
killed again while it continues. Then the same command must end with the hashes of a run that nobody
killed.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from launcher import Launcher
from pocket_study import SETTINGS, changed

from fault_points import Options, Point, Undisturbed, new_folders, tiny_study
from fault_workers import COMMAND
from rankscope.errors import OK

POINTS = 200
SERIES = {"one process": (), "two workers": ("--workers", 2)}
VICTIMS = ("the driver", "a worker", "all")
REMEASURED = 20
"""Points of both series after which a run that is not killed is timed again: what else a machine
does changes how long one takes."""


def points(options: Options) -> Iterator[Point]:
    """Both series; ``options.points`` is their total."""
    moments = random.Random(options.seed)
    file = small_steps(options.folder)
    with Launcher(options.folder, code=COMMAND) as launcher:
        reference = Undisturbed.of(launcher, file)
        folders = new_folders(options.folder)
        lives: dict[str, float] = {}
        for number in range((options.points or POINTS) // len(SERIES)):
            for name, words in SERIES.items():
                if number % (REMEASURED // len(SERIES)) == 0:
                    begun = time.monotonic()
                    undisturbed = reference.resumed(launcher, next(folders), *words)
                    lives[name] = time.monotonic() - begun
                    yield Point(f"{name}: not killed", f"{name}, not killed", undisturbed)
                victim = VICTIMS[number % len(VICTIMS) if words else 0]
                out = next(folders)
                kills = []
                for _ in range(2 if number % 4 == 3 else 1):
                    launcher.start("run", file, "--out", out, *words)
                    moment = moments.uniform(0, lives[name])
                    kills.append(killed(launcher, victim, moment, moments))
                problem = "; ".join(kill for kill in kills if "then exit" in kill)
                problem = problem or reference.resumed(launcher, out, *words)
                yield Point(f"{name}: {'; '.join(kills)}", f"{name}, {outcome_of(kills)}", problem)


def small_steps(folder: Path) -> Path:
    """The study file: two groups, each with a score, a snapshot and a checkpoint on the way."""
    train = changed("train", max_steps=4, evaluate_every=2, evaluate_items=4, checkpoint_every=3)
    return tiny_study(folder, arms=SETTINGS["arms"][1:], **train)


def killed(launcher: Launcher, victim: str, moment: float, chance: random.Random) -> str:
    """Kill ``victim`` after ``moment`` seconds; what was killed, or how the command had ended.

    As long as there are no workers the driver is killed in a worker's place.
    """
    code = launcher.ended(moment)
    if code is not None:
        return f"ended with {code} before {moment:.2f} s"
    driver = launcher.child
    workers = workers_of(driver)
    if victim == "a worker" and workers:
        chosen = [chance.choice(workers)]
    else:
        victim = "all" if victim == "all" else "the driver"
        chosen = [driver, *(workers if victim == "all" else ())]
    for process in chosen:
        kill(process)
    code = launcher.ended()
    if code not in (OK, -signal.SIGKILL):
        return f"{victim} at {moment:.2f} s, then exit {code}"
    return f"{victim} at {moment:.2f} s"


def workers_of(driver: int) -> list[int]:
    """Processes of a driver's workers, children of its starter; none if it has just ended."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        children = psutil.Process(driver).children(recursive=True)
        found = [child.pid for child in children if child.ppid() != driver]
        return [process for process in found if os.getsid(process) == process]
    return []


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def outcome_of(kills: list[str]) -> str:
    """Points are counted by this: who was killed, in turn."""
    victims = [kill.partition(" at ")[0] for kill in kills if " at " in kill]
    return f"{', '.join(victims)} killed" if victims else "ended before"
