"""Two worker processes on two cores against one process with one thread, on the pocket study.

    python benchmarks/two_workers.py

Both sides run ``rankscope run`` on the study of ``rankscope quickstart``, with one thread per
process, into new folders, one after the other. All records and weights are compared before the
ratio is printed; it is meant to be at most 0.65. Prints, last, one line of JSON; the exit code is 1
if the records differ. On an idle machine with two cores this takes about five minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from pocket_study import leftovers, results

from rankscope.store import Ledger

COMMAND = (sys.executable, "-P", "-c", "from rankscope.cli import main; main()")


def seconds_of(*words: object) -> float:
    """Seconds of one ``rankscope`` command with one thread per process; it must end with 0."""
    begun = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, *map(str, words)], env=environment, check=True, stdout=sys.stderr)
    return time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="As of rankscope run.")
    options = parser.parse_args()
    changes = [word for change in options.set for word in ("--set", change)]
    folder = Path(tempfile.mkdtemp(prefix="two-workers-"))
    try:
        file, alone, shared = folder / "pocket.yaml", folder / "alone", folder / "workers"
        seconds_of("init", file, "--preset", "pocket")
        one = seconds_of("run", file, *changes, "--out", alone)
        many = seconds_of("run", file, *changes, "--out", shared, "--workers", options.workers)
        parity = results(alone) == results(shared) and not leftovers(shared)
        with Ledger.open(alone, write=False) as ledger:
            stored = ledger.groups()
        assert stored is not None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "ratio": round(many / one, 3),
        "parity": parity,
        "one_process_seconds": round(one, 1),
        "workers_seconds": round(many, 1),
        "units": len(stored.groups),
    }
    print(json.dumps({"benchmark": "two_workers", "workers": options.workers, **figures}))
    return 0 if parity else 1


if __name__ == "__main__":
    sys.exit(main())
