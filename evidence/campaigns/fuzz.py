"""Read many damaged and hostile inputs, and count those that end in anything but a message.

    python evidence/campaigns/fuzz.py [--kind jsonl] [--inputs 100000] [--keep DIR]

The law: an input is read, or refused by an error of ``rankscope.errors``, within 5 seconds of
processor time and 2 GB. Prints one line per kind, and exits with 1 if an input broke the law.
Hypothesis makes the inputs, by kind and ``--seed``. ``--keep`` writes to a folder, for each way of
breaking it, the shortest input that did.
"""

import argparse
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis

from fuzz_kinds import KINDS
from rankscope.errors import RankscopeError

MAX_SECONDS = 5.0
MAX_BYTES = 2 * 10**9
GIVE_UP_SECONDS = 30
WARM_UP = 20  # Inputs
BATCH = 1000  # Inputs; Hypothesis remembers what it tried
ADDRESS_SPACE = 12 * 2**30  # Of one process; a bomb then ends in a MemoryError


class GaveUp(BaseException):
    """An input that is still being read after ``GIVE_UP_SECONDS`` of processor time."""


class Tally:
    """Outcomes of the inputs of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.outcomes: Counter[str] = Counter()
        """``read``, ``refused``, or how an input broke the law."""
        self.shortest: dict[str, bytes] = {}
        """The shortest input that broke the law, by how it did."""
        self.slowest = 0.0
        """Seconds of processor time."""
        self.peak_bytes = peak_memory()

    def add(self, content: bytes) -> None:
        """Read an input."""
        started = time.process_time()
        with giving_up():
            outcome = verdict(self.kind, content)
        seconds, peak = time.process_time() - started, peak_memory()
        if outcome in ("read", "refused"):
            outcome = f"slower than {MAX_SECONDS:g} s" if seconds > MAX_SECONDS else outcome
            if peak > MAX_BYTES > self.peak_bytes:
                outcome = f"larger than {MAX_BYTES / 1e9:g} GB"
        self.slowest, self.peak_bytes = max(self.slowest, seconds), max(self.peak_bytes, peak)
        self.outcomes[outcome] += 1
        if outcome not in ("read", "refused"):
            kept = self.shortest.setdefault(outcome, content)
            self.shortest[outcome] = min(kept, content, key=len)

    def __str__(self) -> str:
        lines = [
            f"{self.kind:12} {self.outcomes.total():9,} inputs {self.outcomes['refused']:9,} "
            f"refused, {len(self.shortest)} ways to break the law, slowest {self.slowest:.2f} s, "
            f"peak {self.peak_bytes / 1e6:,.0f} MB"
        ]
        broken = [(way, n) for way, n in self.outcomes.most_common() if way in self.shortest]
        return "\n".join([*lines, *(f"    {count:7,} {way}" for way, count in broken)])


def signature(error: BaseException) -> str:
    """The type of an error and the last place in Rankscope that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "rankscope" in Path(f.filename).parts] or frames
    return f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"


def verdict(kind: str, content: bytes) -> str:
    """``read``, ``refused``, or how the input broke the law."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind].read(content, Path(folder))
        except RankscopeError as error:
            return "refused" if str(error).strip() else "an empty message"
        except (Exception, GaveUp) as error:
            return signature(error)
    return "read"


def campaign(kind: str, inputs: int, seed: int) -> Tally:
    """Make inputs of a kind, and read them."""
    found = Tally(kind)
    for first in range(0, inputs, BATCH):

        @hypothesis.seed(f"{kind}/{seed}/{first}")
        @hypothesis.settings(
            max_examples=min(BATCH, inputs - first),
            phases=[hypothesis.Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(KINDS[kind].inputs)
        def read(content: bytes) -> None:
            found.add(content)

        read()
    return found


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def giving_up() -> Iterator[None]:
    """Raise GaveUp in what takes far too much processor time, as soon as it returns to Python."""

    def give_up(*_: object) -> None:
        raise GaveUp

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, GIVE_UP_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, help="One kind of input; all by default.")
    parser.add_argument("--inputs", type=int, default=1000, help="Inputs of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Folder for inputs that broke the law.")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.kind is None:  # each kind has a process, so that peaks do not add up
        words = [sys.executable, *sys.argv]
        sys.exit(max(subprocess.call([*words, "--kind", kind]) for kind in KINDS))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    campaign(options.kind, WARM_UP, options.seed + 1)  # imports are no part of reading an input
    found = campaign(options.kind, options.inputs, options.seed)
    print(found, flush=True)
    for number, content in enumerate(found.shortest.values() if options.keep else ()):
        options.keep.mkdir(parents=True, exist_ok=True)
        (options.keep / f"{found.kind}-{number}").write_bytes(content)
    sys.exit(1 if found.shortest else 0)


if __name__ == "__main__":
    main()
