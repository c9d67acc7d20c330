"""Simulated studies whose truth is known: is the advice right, and do intervals cover the truth?

    python evidence/judges/simulate_studies.py [--only truths] [--row flat]
    python evidence/judges/simulate_studies.py --only random --draws 150 --start 10000 --json FILE
    python evidence/judges/simulate_studies.py --pair BEFORE AFTER

The first line prints the tables of this version. The second one writes what the advice says of
studies of random truths; run it with another version's ``PYTHONPATH`` and another file. The third
one compares two such files study by study. One thread, NumPy alone.

Random truths: ``random_truths.py``. The other studies have the model of an answer of
tests/fixtures/synthetic_study.py. Every item has a latent difficulty that all models share on a
part of the items (``agreement``). A trained seed has a true accuracy of its own, normal around its
arm's with standard deviation ``spread``. The truth that an interval must cover is the mean over
seeds and items that were not drawn.
"""

import argparse
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study

from random_truths import KINDS, Kind, draw as draw_random
from rankscope.advise.recommend import recommend
from rankscope.records import TaskAdvice

Array = np.ndarray
Row = dict[str, Any]
BASE_ACCURACY = 0.6
MARGIN = 0.02


@dataclass(frozen=True)
class Scenario:
    """The distributions that one simulated comparison is drawn from."""

    name: str
    seeds: int = 3
    items: int = 400
    spread: float = 0.01
    """Standard deviation between seeds of the true accuracy."""
    agreement: float = 0.8
    """Share of items on which models answer by the difficulty they share."""
    gain: float = 0.05
    other_seeds: int = 0
    """Seeds of the second arm; 0: the base, which was not trained."""
    tasks: int = 1
    """Tasks averaged over; the same trained models answer all of them."""
    clusters: int = 0
    """Subjects of equal size; 0: items by themselves."""
    cluster_spread: float = 0.0
    """Standard deviation between subjects of the gain."""
    nats: bool = False
    """Scores are log probabilities with normal item effects."""


SCENARIOS = (
    Scenario("seeds alike", spread=0.0),
    Scenario("usual"),
    Scenario("100 items", items=100),
    Scenario("1,500 items", items=1500),
    Scenario("seeds apart by 2 points", spread=0.02),
    Scenario("seeds apart by 5 points", spread=0.05),
    Scenario("seeds apart by 5 points, 1,500 items", spread=0.05, items=1500),
    Scenario("models agree on .95", agreement=0.95, spread=0.02),
    Scenario("models agree on .5", agreement=0.5),
    Scenario("no gain", gain=0.0),
    Scenario("5 seeds, apart by 2 points", seeds=5, spread=0.02),
    Scenario("10 seeds, apart by 2 points", seeds=10, spread=0.02),
    Scenario("against 3 seeds of another arm", other_seeds=3, spread=0.02),
    Scenario("mean of 3 tasks", tasks=3, spread=0.02),
    Scenario("50 subjects, gains apart by 10 points", clusters=50, cluster_spread=0.1),
    Scenario("12 subjects, gains apart by 10 points", clusters=12, cluster_spread=0.1),
    Scenario("nats", nats=True, spread=0.02),
    Scenario("one seed, of that model", seeds=1, spread=0.0),
    Scenario("2 seeds", seeds=2),
    Scenario("2 seeds, apart by 5 points", seeds=2, spread=0.05),
)


def draw(rng: np.random.Generator, s: Scenario) -> Iterator[tuple[Array, Array, Array | None]]:
    """Draw the scores of one comparison, task by task: of both sides, and the items' subjects."""
    seed_effects = s.spread * rng.standard_normal(s.seeds + s.other_seeds)
    for _ in range(s.tasks):
        means = BASE_ACCURACY + np.append(seed_effects, [] if s.other_seeds else [0.0])
        means[: s.seeds] += s.gain
        labels = np.arange(s.items) % s.clusters if s.clusters else None
        accuracy = np.tile(means[:, None], s.items)
        if labels is not None:
            # Centered on nothing: the truth is the mean over subjects that were not drawn.
            accuracy[: s.seeds] += (s.cluster_spread * rng.standard_normal(s.clusters))[labels]
        if s.nats:
            rows = (
                accuracy + rng.standard_normal(s.items) + 0.3 * rng.standard_normal(accuracy.shape)
            )
        else:
            shared = rng.uniform(size=accuracy.shape) < s.agreement
            own = rng.uniform(size=accuracy.shape)
            latent = np.where(shared, rng.uniform(size=s.items), own)
            rows = (latent < accuracy).astype(float)
        other = rows[s.seeds :] if s.other_seeds else rows[s.seeds]
        yield rows[: s.seeds], other, labels


class Coverage(NamedTuple):
    """How often intervals held the truth, and how wide they are."""

    covered: float
    width: float  # Median half-width


def coverage(scenario: Scenario, studies: int, seed: int = 0) -> Coverage:
    """Judge the intervals of so many simulated comparisons."""
    from rankscope.advise.statistics.estimates import Comparison, weighted_estimate

    rng, covered, widths = np.random.default_rng([seed, 1]), 0, []
    for _ in range(studies):
        found = weighted_estimate([Comparison(*task) for task in draw(rng, scenario)])
        if found.low is None or found.high is None:
            raise SystemExit(f"{scenario.name}: an interval is unknown")
        covered += found.low <= scenario.gain <= found.high
        widths.append((found.high - found.low) / 2)
    return Coverage(covered / studies, float(np.median(widths)))


RANKS = (4, 8, 16, 32, 64)
Judge = Callable[[TaskAdvice], str]


def _rank_is(rank: int, also: tuple[int, ...] = ()) -> Judge:
    """Right with this rank, right but dearer with others that are as good in truth."""

    def judge(advice: TaskAdvice) -> str:
        if advice.decision == "not_decided":
            return "cannot know"
        if advice.decision != "use" or advice.chosen is None:
            return "wrong"
        if advice.chosen.rank == rank:
            return "right"
        return "right, dearer" if advice.chosen.rank in also else "wrong"

    return judge


def _decision_is(decision: str) -> Judge:
    def judge(advice: TaskAdvice) -> str:
        if advice.decision == "not_decided":
            return "cannot know"
        return "right" if advice.decision == decision else "wrong"

    return judge


def _largest_and_says_so(advice: TaskAdvice) -> str:
    found = _rank_is(RANKS[-1])(advice)
    says = any("largest rank tried" in r.text for r in advice.reasons)
    return found if found != "right" or says else "wrong"


def _good_rate(advice: TaskAdvice) -> str:
    found = _rank_is(16, (32, 64))(advice)
    low_rate = advice.chosen is not None and advice.chosen.lr == 1e-3
    return found if not found.startswith("right") or low_rate else "wrong"


def _never_sure(advice: TaskAdvice) -> str:
    """Worth nothing: it may be used or not; being sure of a use is wrong."""
    is_used = advice.decision in ("use", "use_full")
    return "wrong" if is_used and advice.confidence == "sure" else "right"


def _over_the_limit(advice: TaskAdvice) -> str:
    """One point over a limit: a recommendation states the probability of breaking it."""
    if advice.decision == "do_not_fine_tune" or advice.chosen is None:
        return "right"
    p = advice.chosen.expected.p_over_limit if advice.chosen.expected else None
    return "wrong" if p is None or p < 0.05 else "cannot know"


def _at_16(rank: int | None, lr: float) -> float:
    return 0.9 if rank is None or rank >= 16 else 0.6


def _rising(rank: int | None, lr: float) -> float:
    return 0.78 if rank is None else 0.5 + 0.07 * float(np.log2(rank / 4))


def _only_at_low_rates(rank: int | None, lr: float) -> float:
    return _at_16(rank, lr) - (0.2 if lr > 2e-3 else 0.05 if lr < 5e-4 else 0.0)


def _two(rank: int | None, lr: float) -> float:
    return 0.02


DIVERGING = {(r, 1e-2, s): "diverged" for r in RANKS for s in (0, 1, 2) if (r, s) != (4, 0)}

TRUTHS: dict[str, tuple[Truth, Judge]] = {
    "a step at r = 16": (
        Truth(ranks=RANKS, accuracy=_at_16, forgetting=_two),
        _rank_is(16, (32, 64)),
    ),
    "flat": (
        Truth(ranks=RANKS, accuracy=lambda rank, lr: 0.7, forgetting=_two),
        _rank_is(4, RANKS[1:]),
    ),
    "rising to the end": (
        Truth(ranks=RANKS, accuracy=_rising, forgetting=_two),
        _largest_and_says_so,
    ),
    "base better than all": (
        Truth(ranks=RANKS, base_accuracy=0.6, accuracy=lambda rank, lr: 0.55, forgetting=_two),
        _decision_is("do_not_fine_tune"),
    ),
    "diverging at the high rate": (
        Truth(
            ranks=RANKS,
            lrs=(1e-4, 1e-3, 1e-2),
            accuracy=_only_at_low_rates,
            forgetting=_two,
            failed=DIVERGING,
        ),
        _good_rate,
    ),
    "one seed": (
        Truth(ranks=RANKS, seeds=(0,), accuracy=_at_16, forgetting=_two),
        _rank_is(16, (32, 64)),
    ),
    "full fine-tuning better by 10 points": (
        Truth(ranks=RANKS, accuracy=lambda rank, lr: 0.9 if rank is None else 0.8, forgetting=_two),
        _decision_is("use_full"),
    ),
    "forgotten as much as gained": (
        Truth(ranks=RANKS, accuracy=lambda rank, lr: 0.42, forgetting=lambda rank, lr: 0.12),
        _never_sure,
    ),
    "forgetting 1 point over the limit": (
        Truth(
            ranks=RANKS,
            accuracy=lambda rank, lr: 0.45,
            forgetting=lambda rank, lr: 0.04,
            objective={"max_forgetting": 0.03},
        ),
        _over_the_limit,
    ),
    "nothing gained, nothing lost": (
        Truth(
            ranks=RANKS,
            base_accuracy=0.6,
            accuracy=lambda rank, lr: 0.6,
            forgetting=lambda rank, lr: 0.0,
        ),
        _decision_is("do_not_fine_tune"),
    ),
}


def judged(name: str, draws: int, start: int = 0) -> Counter[str]:
    """How often the advice on one truth is right, dearer than need be, open or wrong."""
    truth, judge = TRUTHS[name]
    found: Counter[str] = Counter()
    for seed in range(start, start + draws):
        (advice,) = recommend(synthetic_study(truth, seed)).advice
        verdict = judge(advice)
        found[verdict] += 1
        found["sure"] += advice.confidence == "sure"
        found["sure and wrong"] += advice.confidence == "sure" and verdict == "wrong"
    return found


P_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)
ANSWERS = {
    "use": "a rank",
    "use_full": "full fine-tuning",
    "do_not_fine_tune": "do not fine-tune",
    "not_decided": "not decided",
}


def judged_random(kind: Kind, seed: int) -> list[Row]:
    """Say what the advice on one study is and what is true, in a row per training task."""
    drawn, rows = draw_random(kind, seed), []
    scores = b"".join(items.scores.tobytes() for items in drawn.study.items.values())
    for advice in recommend(drawn.study).advice:
        net, arms = drawn.net[advice.task], []
        best = max(0.0, *net.values())
        for arm in advice.arms:
            if (of := arm.expected) is not None:
                true = net[arm.label]
                said = {"p": of.p_within_margin, "within": best - true <= MARGIN}
                said |= {"p_better": of.p_better, "better": true > 0, "net": of.net.value}
                arms.append(
                    {"label": arm.label, **said, "covered": of.net.low <= true <= of.net.high}
                )
        label = None if advice.chosen is None else advice.chosen.label
        regret = best - (0.0 if label is None else net[label])
        row = {"kind": kind.name, "seed": seed, "task": advice.task, "draw": zlib.crc32(scores)}
        row |= {"decision": advice.decision, "chosen": label, "regret": regret}
        row |= {"p": advice.p_within_margin, "within": regret <= MARGIN}
        row["covered"] = next((arm["covered"] for arm in arms if arm["label"] == label), None)
        rows.append(row | {"arms": arms})
    return rows


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_random(given: argparse.Namespace) -> None:
    """Judge random truths, kind after kind at each seed. The file of ``--json`` is continued: its
    studies are not drawn again."""
    kinds = [kind for kind in KINDS if given.row in kind.name]
    rows = read_rows(given.json) if given.json and given.json.exists() else []
    known = {(row["kind"], row["seed"]) for row in rows}
    for seed in range(given.start, given.start + given.draws):
        for kind in [kind for kind in kinds if (kind.name, seed) not in known]:
            found = judged_random(kind, seed)
            rows += found
            if given.json:
                with given.json.open("a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in found))
    if found := [row for row in rows if given.row in row["kind"]]:
        print_rows(found)


def print_rows(rows: list[Row]) -> None:
    """Print regret by kind and by answer, and whether what is said is as often true."""
    columns = "answers | regret | 95th percentile | outside the margin | P >= 0.9 | covers"
    print(f"| kind | {columns} | every arm's covers |\n|{'---|' * 8}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        print(_random_row(kind, [row for row in rows if row["kind"] == kind]))
    print(_random_row("all", rows))
    answers = {text: [r for r in rows if r["decision"] == key] for key, text in ANSWERS.items()}
    answers = {text: found for text, found in answers.items() if found}
    for answer, found in answers.items():
        print(_random_row(answer, found))
    arms = [arm for row in rows for arm in row["arms"]]
    for name, judged in {"all answers": rows, **answers, "every arm": arms}.items():
        print_reliability(f"P(within the margin), {name}", judged, "p", "within")
    best = [max(row["arms"], key=lambda arm: arm["net"]) for row in rows if row["arms"]]
    print_reliability("P(better than the base), the best arm", best, "p_better", "better")


def print_reliability(title: str, rows: list[Row], stated: str, true: str) -> None:
    """Print, by bin of a stated probability, its mean and how often it is true."""
    print(f"\n| {title} | number | stated, mean | true |\n|---|---|---|---|")
    for low, high in pairwise(P_BINS):
        of_bin = [(row[stated], row[true]) for row in rows if low <= (row[stated] or 0) < high]
        if of_bin:
            p, share = np.mean(np.array(of_bin, dtype=float), axis=0)
            print(f"| {low:.2f} to {min(high, 1):.2f} | {len(of_bin)} | {p:.3f} | {share:.3f} |")


def _random_row(name: str, rows: list[Row]) -> str:
    regret = 100 * np.array([row["regret"] for row in rows])
    cells = [name, str(len(rows)), f"{regret.mean():.2f}", f"{np.quantile(regret, 0.95):.2f}"]
    cells.append(_share([not row["within"] for row in rows]))
    cells.append(_share([(row["p"] or 0) >= 0.9 for row in rows]))
    cells.append(_share([row["covered"] for row in rows]))
    cells.append(_share([arm["covered"] for row in rows for arm in row["arms"]]))
    return "| " + " | ".join(cells) + " |"


def _share(of: list[bool | None]) -> str:
    known = [value for value in of if value is not None]
    return f"{100 * np.mean(known):.1f} % of {len(known)}" if known else ""


def print_pairs(before: Path, after: Path) -> None:
    """Compare two files of rows on the studies that both have, by kind."""
    first, second = (
        {(row["kind"], row["seed"], row["task"], row["draw"]): row for row in read_rows(path)}
        for path in (before, after)
    )
    shared = [key for key in first if key in second]
    print(f"{len(shared)} answers in both, {len(first)} before, {len(second)} after\n")
    columns = "regret before | after | difference | outside the margin | interval covers"
    print(f"| kind | answers | {columns} |\n|{'---|' * 7}")
    for kind in (*dict.fromkeys(key[0] for key in shared), "all"):
        both = [(first[k], second[k]) for k in shared if kind in (k[0], "all")]
        regret = 100 * np.array([[row["regret"] for row in pair] for pair in both])
        off = regret[:, 1] - regret[:, 0]
        error = f"{off.std(ddof=1) / len(off) ** 0.5:.2f}" if len(off) > 1 else "?"
        cells = [kind, str(len(both)), *(f"{mean:.2f}" for mean in regret.mean(axis=0))]
        cells.append(f"{off.mean():+.2f} ± {error}")
        sides = list(zip(*both, strict=True))
        cells.append(", ".join(_share([not row["within"] for row in side]) for side in sides))
        cells.append(", ".join(_share([row["covered"] for row in side]) for side in sides))
        print("| " + " | ".join(cells) + " |")


def print_coverage(given: argparse.Namespace) -> None:
    """Judge the intervals of every scenario."""
    print("| scenario | seeds | covers the truth | half-width |\n|---|---|---|---|")
    for s in [s for s in SCENARIOS if given.row in s.name]:
        covered, width = (100 * figure for figure in coverage(s, given.studies))
        print(f"| {s.name} | {s.seeds} | {covered:.1f} % | {width:.1f} |", flush=True)


def print_truths(given: argparse.Namespace) -> None:
    """Judge the advice on known truths."""
    columns = ("right", "right, dearer", "cannot know", "wrong", "sure", "sure and wrong")
    print("| truth | " + " | ".join(columns) + " |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in TRUTHS if given.row in name]:
        n = judged(name, given.draws, given.start)
        print(f"| {name} | " + " | ".join(str(n[c]) for c in columns) + " |", flush=True)


PARTS = {"truths": print_truths, "random": print_random, "coverage": print_coverage}


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description="Simulated studies of known truth.")
    parser.add_argument("--studies", type=int, default=2000, help="of every interval")
    parser.add_argument("--draws", type=int, default=500, help="of every truth")
    parser.add_argument("--start", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--only", choices=sorted(PARTS), help="one table; by default all")
    parser.add_argument("--row", default="", help="rows whose name holds this; by default all")
    parser.add_argument("--json", type=Path, help="write random truths' rows here, or go on there")
    parser.add_argument("--pair", type=Path, nargs=2, help="compare two of these files")
    given = parser.parse_args()
    if given.pair:
        print_pairs(*given.pair)
    for name, part in PARTS.items():
        if given.only in (None, name) and not given.pair:
            began = time.perf_counter()
            part(given)
            print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
