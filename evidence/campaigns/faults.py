"""Campaign of faults: what a maintainer runs before a release.

    python evidence/campaigns/faults.py                          # everything; takes hours
    python evidence/campaigns/faults.py --families disk --points 50 --minutes 60

Each family makes real faults happen to real commands and checks what comes of each one; it prints
one summary line. The last line is one JSON object. The exit code is 1 if anything is not as it
must be. docs/gpus-and-clusters.md says what must be, which points of each family were run last, and
what came of them.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from fault_points import Options, Point

FAMILIES = {
    "bits": "fault_bits",
    "disk": "fault_disk",
    "kills": "fault_kills",
    "memory": "fault_memory",
    "readers": "fault_readers",
    "scale": "fault_scale",
}
"""Name -> module, which has a function ``points(options)``."""
SHOWN = 20
"""Most problems that the JSON object of a family quotes."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--families", default=",".join(FAMILIES), help="by commas")
    parser.add_argument("--points", type=int, help="most per series of a family; default: all")
    parser.add_argument("--minutes", type=float, help="most for a family; default: to its end")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def run_family(name: str, points: Iterator[Point], minutes: float | None) -> Any:
    """Run one family, print its summary line, and return its figures."""
    begun = time.monotonic()
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    for point in points:
        outcomes[point.outcome] += 1
        if point.problem:
            problems.append(f"{point.what}: {point.problem}")
            print(f"{name}: PROBLEM: {problems[-1]}", file=sys.stderr, flush=True)
        if outcomes.total() % 25 == 0:
            seconds = time.monotonic() - begun
            print(f"{name}: {outcomes.total()} points, {seconds:.0f} s", file=sys.stderr)
        if minutes is not None and time.monotonic() - begun > 60 * minutes:
            print(f"{name}: stopped after {minutes:g} minutes", file=sys.stderr)
            break
    seconds = round(time.monotonic() - begun)
    counts = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(outcomes.items()))
    print(
        f"{name}: {outcomes.total()} points, {len(problems)} not as they must be "
        f"({counts}; {seconds} s)",
        flush=True,
    )
    return {
        "points": outcomes.total(),
        "outcomes": dict(outcomes),
        "num_problems": len(problems),
        "problems": problems[:SHOWN],
        "seconds": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the families that are asked for."""
    asked = parse(arguments)
    families = {}
    for name in asked.families.split(","):
        folder = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        try:
            options = Options(asked.points, asked.seed, folder)
            points = import_module(FAMILIES[name]).points(options)
            families[name] = run_family(name, points, asked.minutes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"benchmark": "faults", "points": asked.points, "families": families}))
    return int(any(family["num_problems"] for family in families.values()))


if __name__ == "__main__":
    sys.exit(main())
