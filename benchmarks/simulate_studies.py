"""Simulated studies whose truth is known: do intervals cover it, do tests err as often as they say,
and is the advice right?

    python benchmarks/simulate_studies.py [--studies 2000] [--draws 500] [--only truths]
        [--row flat]

prints the tables of docs/findings/2026-11-29-posterior.md (intervals, families and the plain
bootstrap: docs/findings/2026-11-25-simulated-studies.md). One thread, NumPy alone. The
model of an answer is that of tests/fixtures/synthetic_study.py: every item has a latent
difficulty that all models share on a part of the items (``agreement``), a trained seed has a true
accuracy of its own, normal around its arm's with standard deviation ``spread``, and the truth that
an interval must cover is the mean over seeds and items not drawn.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study

from random_truths import KINDS, Kind
from random_truths import draw as draw_random
from rankscope.advise.recommend import recommend
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.significance import holm
from rankscope.records import TaskAdvice

Array = np.ndarray
BASE_ACCURACY = 0.6
MARGIN = 0.02


@dataclass(frozen=True)
class Scenario:
    """What one simulated comparison is drawn from."""

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


def draw(rng: np.random.Generator, s: Scenario) -> list[Comparison]:
    """The scores of one simulated comparison, task by task."""
    seed_effects = s.spread * rng.standard_normal(s.seeds + s.other_seeds)
    found = []
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
        found.append(Comparison(rows[: s.seeds], other, labels))
    return found


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth, and how often it called a gain."""

    covered: float
    called_better: float
    """p < .05 and above zero."""
    called_different: float
    width: float
    """Median half-width."""


def coverage(scenario: Scenario, studies: int, seed: int = 0) -> Coverage:
    """Of ``studies`` simulated comparisons."""
    rng = np.random.default_rng([seed, 1])
    covered = better = different = 0
    widths = []
    for _ in range(studies):
        found = weighted_estimate(draw(rng, scenario))
        if found.low is None or found.high is None or found.p is None:
            raise SystemExit(f"{scenario.name}: an interval is unknown")
        covered += found.low <= scenario.gain <= found.high
        different += found.p < 0.05
        better += found.p < 0.05 and found.value > 0
        widths.append((found.high - found.low) / 2)
    return Coverage(
        covered / studies, better / studies, different / studies, float(np.median(widths))
    )


def percentile_bootstrap(
    comparison: Comparison, rng: np.random.Generator, nested: bool, draws: int = 300
) -> tuple[float, float]:
    """The plain percentile interval over seeds and items, for comparison; no correction.

    ``nested``: items drawn anew within each drawn seed, else once for all of them.
    """
    difference = comparison.tuned - comparison.reference
    seeds, items = difference.shape
    means = np.empty(draws)
    for i in range(draws):
        picked = difference[rng.integers(seeds, size=seeds)]
        if nested:
            columns = rng.integers(items, size=(seeds, items))
            means[i] = np.take_along_axis(picked, columns, axis=1).mean()
        else:
            means[i] = picked[:, rng.integers(items, size=items)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def plain_coverage(scenario: Scenario, studies: int, nested: bool) -> float:
    """How often the uncorrected bootstrap holds the truth."""
    rng = np.random.default_rng([0, 2])
    covered = 0
    for _ in range(studies):
        low, high = percentile_bootstrap(draw(rng, scenario)[0], rng, nested)
        covered += low <= scenario.gain <= high
    return covered / studies


def family_wise(studies: int, ranks: int = 4, tasks: int = 3, seed: int = 0) -> tuple[float, float]:
    """Share of studies without any effect in which some arm is called different from the base.

    As they are, and by Holm over ranks x tasks. Three seeds, 400 items, seeds apart by one point;
    the arms of a task share its items and its base.
    """
    rng = np.random.default_rng([seed, 3])
    raw = adjusted = 0
    for _ in range(studies):
        p_values = []
        for _ in range(tasks):
            whole = replace(SCENARIOS[1], seeds=3 * ranks, gain=0.0)
            (rows,) = draw(rng, whole)
            p_values += [
                weighted_estimate([Comparison(rows.tuned[3 * r : 3 * r + 3], rows.reference)]).p
                or 0.0
                for r in range(ranks)
            ]
        raw += min(p_values) < 0.05
        adjusted += min(holm(p_values)) < 0.05
    return raw / studies, adjusted / studies


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


P_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def judged_random(kind: Kind, draws: int, start: int = 0) -> list[dict[str, object]]:
    """What the advice says on studies of one kind, and what is true, a row per training task."""
    rows: list[dict[str, object]] = []
    for seed in range(start, start + draws):
        drawn = draw_random(kind, seed)
        margin = 0.05 if kind.shares else MARGIN
        for advice in recommend(drawn.study).advice:
            net = drawn.net[advice.task]
            best = max(0.0, *net.values())
            used = 0.0 if advice.chosen is None else net[advice.chosen.label]
            arms = {arm.label: arm.expected for arm in advice.arms if arm.expected is not None}
            top = max(arms, key=lambda label: arms[label].net)
            chosen = None if advice.chosen is None else arms[advice.chosen.label]
            rows.append(
                {
                    "kind": kind.name,
                    "seed": seed,
                    "decision": advice.decision,
                    "regret": best - used,
                    "p": advice.p_within_margin,
                    "within": best - used <= margin,
                    "p_better": arms[top].p_better,
                    "better": net[top] > 0,
                    "covered": None if chosen is None else chosen.low <= used <= chosen.high,
                    "arms": [
                        {"p": arm.p_within_margin, "within": best - net[label] <= margin}
                        for label, arm in arms.items()
                    ],
                }
            )
    return rows


def reliability(
    rows: list[dict[str, object]], stated: str, true: str
) -> list[tuple[float, float, int, float, float]]:
    """By bin of the stated probability: its ends, studies, mean stated and share true."""
    found = []
    for low, high in zip(P_BINS, (*P_BINS[1:], 1.01), strict=True):
        of_bin = [(row[stated], row[true]) for row in rows if low <= row[stated] < high]
        if of_bin:
            means = np.mean(np.array(of_bin, dtype=float), axis=0)
            found.append((low, min(1.0, high), len(of_bin), float(means[0]), float(means[1])))
    return found


def print_random(studies: int, draws: int, row: str) -> None:
    """Random truths: regret, and whether what is said is as often true."""
    rows: list[dict[str, object]] = []
    print(
        "| kind | answers | mean regret | 95th percentile | outside the margin | P >= .9 | covers |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in [k for k in KINDS if row in k.name]:
        rows += judged_random(kind, draws)
        print(_random_row(kind.name, [r for r in rows if r["kind"] == kind.name]), flush=True)
    print(_random_row("all", rows), flush=True)
    arms = [arm for row in rows for arm in row["arms"]]
    for title, of, stated, true in (
        ("P(within the margin of the best), the answer", rows, "p", "within"),
        ("the same, every arm", arms, "p", "within"),
        ("P(the best arm is better than the base)", rows, "p_better", "better"),
    ):
        print(f"\n| {title} | number | stated, mean | true |\n|---|---|---|---|")
        for low, high, n, mean, share in reliability(of, stated, true):
            print(f"| {low:.2f} to {high:.2f} | {n} | {mean:.3f} | {share:.3f} |")


def _random_row(name: str, rows: list[dict[str, object]]) -> str:
    regret = 100 * np.array([row["regret"] for row in rows])
    covered = [row["covered"] for row in rows if row["covered"] is not None]
    cells = (
        name,
        str(len(rows)),
        f"{regret.mean():.2f}",
        f"{np.quantile(regret, 0.95):.2f}",
        str(sum(not row["within"] for row in rows)),
        f"{100 * np.mean([row['p'] >= 0.9 for row in rows]):.0f} %",
        f"{100 * np.mean(covered):.1f} %" if covered else "",
    )
    return "| " + " | ".join(cells) + " |"


def print_coverage(studies: int, draws: int, row: str) -> None:
    """Intervals of every scenario."""
    print("| scenario | seeds | covers the truth | half-width | called different |")
    print("|---|---|---|---|---|")
    for s in [s for s in SCENARIOS if row in s.name]:
        c = coverage(s, studies)
        print(
            f"| {s.name} | {s.seeds} | {100 * c.covered:.1f} % | {100 * c.width:.1f} | "
            f"{100 * c.called_different:.1f} % |",
            flush=True,
        )


def print_plain(studies: int, draws: int, row: str) -> None:
    """What an uncorrected bootstrap of seeds covers."""
    print("| 3 seeds | percentile, items once for all | percentile, items within seeds |")
    print("|---|---|---|")
    for s in [s for s in SCENARIOS[:7] if row in s.name]:
        crossed, nested = (plain_coverage(s, draws, n) for n in (False, True))
        print(f"| {s.name} | {100 * crossed:.1f} % | {100 * nested:.1f} % |", flush=True)


def print_family(studies: int, draws: int, row: str) -> None:
    """Errors over a family of tests."""
    raw, adjusted = family_wise(studies)
    error = 100 * sqrt(0.05 * 0.95 / studies)
    print(
        "4 ranks x 3 tasks without any effect: some arm differs from the base in "
        f"{100 * raw:.1f} % of {studies} studies, by Holm in {100 * adjusted:.1f} % "
        f"(+- {error:.1f}).",
        flush=True,
    )


def print_truths(studies: int, draws: int, row: str) -> None:
    """The advice on known truths."""
    columns = ("right", "right, dearer", "cannot know", "wrong", "sure", "sure and wrong")
    print("| truth | " + " | ".join(columns) + " |")
    print("|---|---|---|---|---|---|---|")
    for name in [name for name in TRUTHS if row in name]:
        n = judged(name, draws)
        print(f"| {name} | " + " | ".join(str(n[c]) for c in columns) + " |", flush=True)


PARTS = {
    "truths": print_truths,
    "random": print_random,
    "coverage": print_coverage,
    "family": print_family,
    "plain": print_plain,
}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description="Simulated studies of known truth.")
    parser.add_argument("--studies", type=int, default=2000, help="of every interval")
    parser.add_argument("--draws", type=int, default=500, help="of every truth")
    parser.add_argument("--only", choices=sorted(PARTS), help="one table; by default all")
    parser.add_argument("--row", default="", help="rows whose name holds this; by default all")
    given = parser.parse_args()
    for name, part in PARTS.items():
        if given.only in (None, name):
            began = time.perf_counter()
            part(given.studies, given.draws, given.row)
            print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
