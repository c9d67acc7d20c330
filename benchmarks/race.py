"""The harness of every race: two sides take turns in short segments, and every pair has a ratio.

A side is a function. It loads, and returns a function that computes one segment of the race. Each
side lives in a process of its own, whose first segment is its warm-up and is not timed. Then they
take turns, first the one, then the other, next time in reverse order (ABBA): one computes while the
other waits for it. A machine that slows down or speeds up does so for both segments of a pair, so
the ratio of a pair hardly notices. The answer is the median of these ratios.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from rankscope.device import keep_freed_memory
from rankscope.run.versions import provenance

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SPAWN = multiprocessing.get_context("spawn")
CERTAINTY = 0.95


@dataclass(frozen=True, slots=True)
class Segment:
    """One turn of a side.

    Attributes:
        seconds: without what the race does not time.
        work: what was done, in a unit that both sides count alike, such as valid tokens.
        found: results that both sides must agree on.
    """

    seconds: float
    work: float
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / self.seconds


Turn = Callable[[], Segment]
Side = Callable[[Any], Turn]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The segments of both sides, in pairs."""

    ours: list[Segment]
    theirs: list[Segment]

    @property
    def ratios(self) -> list[float]:
        """Our work per second over the peer's, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours.rate / theirs.rate for ours, theirs in pairs]


def take_turns(ours: Turn, theirs: Turn, count: int) -> Pairs:
    """Let both sides compute ``count`` segments: ours, theirs, theirs, ours, ours, theirs."""
    pairs = Pairs([], [])
    for number in range(count):
        turns = [(ours, pairs.ours), (theirs, pairs.theirs)]
        for turn, segments in turns if number % 2 == 0 else reversed(turns):
            segments.append(turn())
    return pairs


def interval_of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """The narrowest pair of order statistics that holds the median of the population with at least
    ``CERTAINTY``, whatever the distribution. Fewer than six values have none."""
    count, outside, place = len(values), 0.0, 0
    while (outside := outside + 2 * math.comb(count, place) / 2**count) <= 1 - CERTAINTY:
        place += 1
    ordered = sorted(values)
    return (ordered[place - 1], ordered[count - place]) if place else None


@contextmanager
def worker(side: Side, given: Any) -> Iterator[Turn]:
    """A side in a process of its own, loaded and warmed up; what it prints goes to stderr.

    Raises:
        SystemExit: the side failed, and has printed why.
    """
    os.environ.update(ENVIRONMENT)
    ours, its = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(side, given, its))
    process.start()
    its.close()

    def received() -> Segment:
        try:
            segment: Segment = ours.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{side.__name__} failed, as it says above") from None
        return segment

    def turn() -> Segment:
        with suppress(OSError):  # a side that ended is noticed below
            ours.send(None)
        return received()

    try:
        received()
        yield turn
    finally:
        ours.close()
        process.join()


def serve(side: Side, given: Any, pipe: Any) -> None:
    """Be one side, until the pipe is closed. Freed memory is kept, so that no side is measured with
    a slower allocator than the other."""
    os.dup2(2, 1)
    keep_freed_memory()
    turn = side(given)
    pipe.send(turn())
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(turn())


def segment_of(side: Side, given: Any) -> Segment:
    """One segment of a side that races against nobody, after its warm-up."""
    with worker(side, given) as turn:
        return turn()


def race(
    ours: Side, peers: Mapping[str, Side], given: Any, count: int
) -> tuple[dict[str, Any], dict[str, Pairs]]:
    """Race one side against each peer in turn.

    Args:
        peers: by the name of the ratio.
        given: what every side is called with.
        count: pairs of segments for each peer.

    Returns:
        The fields of the result, and the segments by peer.
    """
    result: dict[str, Any] = {"pairs": count, "intervals": {}, "rates": {}}
    raced: dict[str, Pairs] = {}
    for name, peer in peers.items():
        with worker(ours, given) as own, worker(peer, given) as other:
            pairs = raced[name] = take_turns(own, other, count)
        result[name] = statistics.median(pairs.ratios)
        result["intervals"][name] = interval_of_median(pairs.ratios)
        all_ours = [segment for of in raced.values() for segment in of.ours]
        for side, segments in ((ours, all_ours), (peer, pairs.theirs)):
            rate = statistics.median(segment.rate for segment in segments)
            result["rates"][side.__name__] = rate
        print(f"{name}: {result[name]:.3g} of {pairs.ratios}", file=sys.stderr, flush=True)
    return result, raced


def heading(benchmark: str, dtype: str, device: torch.device | None = None) -> dict[str, Any]:
    """The first fields of a result: the race, and the machine that its figures belong to."""
    here = provenance()
    name = f"{here.processor}, {here.num_threads} threads"
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "benchmark": benchmark,
        "device": f"{name}, torch {torch.__version__}",
        "dtype": dtype,
    }


def announce(result: Mapping[str, Any]) -> int:
    """Print the result as one JSON line; the exit code, 1 where the sides do not agree."""
    print(json.dumps(rounded(result)))
    parity, largest = result["parity"], result["parity_tolerance"]
    if parity <= largest:  # False for NaN
        return 0
    print(f"no race: sides differ by {parity:.2g}, more than {largest:.2g}", file=sys.stderr)
    return 1


def rounded(value: object) -> object:
    """Numbers to four significant digits, inside of mappings and sequences too."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
