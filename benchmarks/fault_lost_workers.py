"""SIGKILL of one of two workers at a random moment: the run must come to equal hashes by itself."""

import random
import time
from collections.abc import Iterator

from launcher import Launcher

from fault_kills import kill, small_steps, workers_of
from fault_points import Options, Point, Undisturbed, new_folders
from fault_workers import COMMAND
from rankscope.errors import OK

POINTS = 50


def points(options: Options) -> Iterator[Point]:
    """Runs that lose a worker, ``options.points`` of them."""
    chance = random.Random(options.seed)
    with Launcher(options.folder, code=COMMAND) as launcher:
        reference = Undisturbed.of(launcher, small_steps(options.folder))
        folders, lost, span = new_folders(options.folder), 0, 1e6
        while lost < (options.points or POINTS):
            out, code = next(folders), None
            launcher.start("run", reference.file, "--out", out, "--workers", 2)
            while code is None and not workers_of(launcher.child):
                code = launcher.ended(0.01)
            begun, wait = time.monotonic(), chance.uniform(0, span)
            code = launcher.ended(wait) if code is None else code
            workers = workers_of(launcher.child) if code is None else []
            if workers:
                kill(chance.choice(workers))
                lost += 1
            code = launcher.ended() if code is None else code
            if not workers:  # the first one tells how long workers live, later ones tell again
                span = time.monotonic() - begun
            problem = reference.differs(out) if code == OK else f"exit {code}: {launcher.said()}"
            outcome = "a worker killed" if workers else "no worker at that moment"
            yield Point(f"{outcome}, {wait:.2f} s after the first began", outcome, problem)
