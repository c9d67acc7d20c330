"""Read many damaged and hostile inputs, and count those that end in anything but a message.

    python benchmarks/fuzz.py [--kind jsonl] [--inputs 100000] [--keep DIR]

The law: an input is read, or refused by an error of ``rankscope.errors``, within 5 seconds of
processor time and 2 GB. Prints one line per kind, and exits with 1 if an input broke the law. Input
N of a kind is a function of the kind, ``--seed`` and N alone. ``--keep`` writes those that broke it
to a folder.
"""

import argparse
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_kinds import KINDS
from rankscope.errors import RankscopeError

MAX_SECONDS = 5.0
MAX_BYTES = 2 * 10**9
GIVE_UP_SECONDS = 30
WARM_UP = 20  # Inputs
ADDRESS_SPACE = 12 * 2**30  # Of one process; a bomb then ends in a MemoryError


class GaveUp(BaseException):
    """An input that is still being read after ``GIVE_UP_SECONDS`` of processor time."""


@dataclass(slots=True)
class Tally:
    """What became of the inputs of one kind."""

    kind: str
    inputs: int = 0
    refused: int = 0
    broken: dict[str, list[int]] = field(default_factory=dict)
    """What broke the law, and the numbers of the inputs."""
    slowest: tuple[float, int] = (0.0, 0)
    peak_bytes: int = 0

    @property
    def line(self) -> str:
        count = sum(map(len, self.broken.values()))
        return (
            f"{self.kind:12} {self.inputs:9,} inputs {self.refused:9,} refused {count:7,} broke "
            f"the law in {len(self.broken)} ways, slowest {self.slowest[0]:.2f} s (input "
            f"{self.slowest[1]:,}), peak {self.peak_bytes / 1e6:,.0f} MB"
        )


def make_input(kind: str, seed: int, number: int) -> bytes:
    return KINDS[kind].make(random.Random(f"{kind}/{seed}/{number}"))


def signature(error: BaseException) -> str:
    """The type of an error and the last place in Rankscope that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "rankscope" in Path(f.filename).parts] or frames
    return f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"


def verdict(kind: str, content: bytes) -> tuple[str, str]:
    """``read``, ``refused`` or ``broken``, and how."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind].read(content, Path(folder))
        except RankscopeError as error:
            text = str(error)
            return ("refused", "") if text.strip() else ("broken", "an empty message")
        except (Exception, GaveUp) as error:
            return "broken", signature(error)
    return "read", ""


def tally(kind: str, numbered: Iterable[tuple[int, bytes]], keep: Path | None = None) -> Tally:
    """Read inputs one after another."""
    found = Tally(kind)
    for number, content in numbered:
        before = peak_memory()
        started = time.process_time()
        with giving_up():
            outcome, reason = verdict(kind, content)
        seconds = time.process_time() - started
        found.inputs += 1
        found.refused += outcome == "refused"
        found.slowest = max(found.slowest, (seconds, number))
        found.peak_bytes = max(found.peak_bytes, peak_memory())
        if outcome != "broken" and seconds > MAX_SECONDS:
            outcome, reason = "broken", f"slower than {MAX_SECONDS:g} s"
        if found.peak_bytes > MAX_BYTES > before:
            outcome, reason = "broken", f"larger than {MAX_BYTES / 1e9:g} GB"
        if outcome == "broken":
            found.broken.setdefault(reason, []).append(number)
            if keep is not None and len(found.broken[reason]) == 1:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind}-{number}").write_bytes(content)
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


def campaign(options: argparse.Namespace) -> Tally:
    """Read all inputs of one kind in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for number in range(WARM_UP):  # imports are no part of reading an input
        verdict(options.kind, make_input(options.kind, options.seed, number))
    numbers = range(options.start, options.start + options.inputs)
    inputs = ((number, make_input(options.kind, options.seed, number)) for number in numbers)
    return tally(options.kind, inputs, options.keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, help="One kind of input; all by default.")
    parser.add_argument("--inputs", type=int, default=1000, help="Inputs of each kind.")
    parser.add_argument("--start", type=int, default=0, help="Number of the first input.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Folder for inputs that broke the law.")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.kind is None:  # each kind has a process, so that peaks do not add up
        words = [sys.executable, *sys.argv]
        codes = [subprocess.call([*words, "--kind", kind]) for kind in KINDS]
        sys.exit(max(codes))
    found = campaign(options)
    print(found.line, flush=True)
    for reason, numbers in sorted(found.broken.items(), key=lambda entry: -len(entry[1])):
        print(f"    {len(numbers):7,} {reason}, such as input {numbers[0]}", flush=True)
    sys.exit(1 if found.broken else 0)


if __name__ == "__main__":
    main()
