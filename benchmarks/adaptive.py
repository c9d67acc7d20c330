"""Simulated studies, trained adaptively and as a whole grid: the same decision, at what cost?

    python benchmarks/adaptive.py [--studies 500] [--only WORLD] [--start 0] [--json FILE]

Every draw of a *world* is a study whose truth is known: final scores of every arm, how they got
there (learning curves at the rungs), spread between seeds, items. The grid trains every arm and
seed; the adaptive study asks ``advise.adaptive`` what to stop and what to train next. Both are
judged by ``recommend``. Prints the tables of docs/findings/2026-11-26-adaptive-studies.md. One
thread, NumPy alone; seeds are fixed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study

from rankscope.advise.adaptive import AdaptiveRule, Stop, finalists, next_trials, stops_at_rung
from rankscope.advise.recommend import recommend
from rankscope.records import BASE, EvalKey, StudyRecords, TrialRecords, TrialSpec
from simulate_studies import TRUTHS

Array = np.ndarray
TASK, RETAINED = "med", "general"
BASE_SCORE = {TASK: 0.4, RETAINED: 0.8}
MARGIN = 0.02
RULE = AdaptiveRule()


@dataclass(frozen=True)
class World:
    """What studies are drawn from."""

    name: str
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    full_lrs: tuple[float, ...] = (1e-4, 3e-4)
    seeds: int = 3
    items: int = 400
    spread: float = 0.01
    """Standard deviation between seeds of the true score."""
    heavy: bool = False
    """Seeds are apart by Student's t of 3 with that standard deviation."""
    two_parameters: bool = False
    """Items have a difficulty and a discrimination each (2PL)."""
    crossing: float = 1.0
    """How much arms differ in speed: high rates lead late, low ranks lead early."""
    truth: str = ""
    """Final scores as in this truth of ``simulate_studies.py`` at the best rate; else random."""
    only_rates: bool = True
    """False: the truth's own rates."""
    trade_off: float = 0.5
    """Forgetting of the most capable arm, in shares of its gain."""

    @property
    def grid(self) -> Truth:
        own = TRUTHS[self.truth][0] if self.truth else None
        return Truth(
            ranks=self.ranks if own is None else own.ranks,
            lrs=self.lrs if own is None or self.only_rates else own.lrs,
            full_lrs=self.full_lrs if own is None or self.only_rates else own.full_lrs,
            seeds=tuple(range(self.seeds)) if own is None else own.seeds,
            cross=(),
            num_items=self.items,
            failed={} if own is None else own.failed,
            objective={} if own is None else own.objective,
        )


EXISTING = tuple(World(name, truth=name) for name in TRUTHS)
"""The ten truths of ``simulate_studies.py``; three rates per rank, two of full fine-tuning."""
AS_THEY_ARE = tuple(
    World(f"{name}, one rate", truth=name, only_rates=False)
    for name in TRUTHS
    if name != "diverging at the high rate"
)
RANDOM = (
    World("random"),
    World("random, heavy-tailed seeds 2 points apart", spread=0.02, heavy=True),
    World("random, 2PL items", two_parameters=True),
    World(
        "random, 2PL, heavy tails, 5 seeds", seeds=5, two_parameters=True, spread=0.02, heavy=True
    ),
    World("random, parallel curves", crossing=0.0),
    World("random, curves cross twice as much", crossing=2.0),
    World("random, 150 items", items=150),
    World("random, 1,500 items", items=1500),
    World("random, forgets as much as it gains", trade_off=1.0),
    World("random, 7 ranks", ranks=(2, 4, 8, 16, 32, 64, 128)),
    World("random, 5 rates", lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
)
WORLDS = {w.name: w for w in (*EXISTING, *RANDOM, *AS_THEY_ARE)}


@lru_cache(maxsize=8)
def frame_of(world: World) -> StudyRecords:
    """Trials, settings and item ids; every score is replaced."""
    frame = synthetic_study(world.grid)
    return replace(frame, trials=tuple(replace(t, spectra=None) for t in frame.trials))


@dataclass
class Drawn:
    """One study: the truth of its arms, and every answer of every trial at every share of steps."""

    world: World
    seed: int
    frame: StudyRecords = field(init=False)
    gain: dict[str, float] = field(default_factory=dict)
    """Label of an arm -> its true gain."""
    loss: dict[str, float] = field(default_factory=dict)
    """Label -> its true forgetting."""

    def __post_init__(self) -> None:
        world, rng = self.world, np.random.default_rng([self.seed, 5])
        self.frame = frame_of(world)
        self.trials = {t.spec.trial_id: t for t in self.frame.trials}
        specs = [t.spec for t in self.frame.trials]
        arms = {s.arm_label: s for s in specs}
        base, final = final_scores(world, list(arms.values()), rng)
        self.base = base
        for label in arms:
            self.gain[label] = final[TASK][label] - base[TASK]
            self.loss[label] = base[RETAINED] - final[RETAINED][label]
        speeds = {label: _speed(world, arms, spec, rng) for label, spec in arms.items()}
        size = len(specs)
        noise = _deviations(world, rng, (2, 2, size)) * world.spread
        self.rows = {s.trial_id: i for i, s in enumerate(specs)}
        self._change = {
            TASK: np.array([self.gain[s.arm_label] for s in specs]),
            RETAINED: np.array([-self.loss[s.arm_label] for s in specs]),
        }
        self._noise = dict(zip((TASK, RETAINED), noise, strict=True))
        self._speed = np.array([speeds[s.arm_label][0] for s in specs])
        self._dip = np.array([speeds[s.arm_label][1] for s in specs])
        self._answers = {
            (task, split): _Items(world, rng, size)
            for task in (TASK, RETAINED)
            for split in ("validation", "test")
        }

    def true_scores(self, task: str, share: float) -> Array:
        """Of every trial, (M,), after that share of its steps."""
        k = self._speed
        reached = (1 - np.exp(-k * share)) / (1 - np.exp(-k)) - 4 * self._dip * share * (1 - share)
        late, early = self._noise[task]
        # Half of what a seed is off by at the start of training stays to its end.
        seed = late * share + early * (1 - share)
        return np.clip(self.base[task] + self._change[task] * reached + seed, 0.01, 0.99)

    def items(self, ids: Iterable[str], split: str, share: float = 1.0) -> dict[EvalKey, object]:
        """Item scores of the base and of trials."""
        found = {}
        rows = [self.rows[i] for i in ids]
        names = [s for s, r in self.rows.items() if r in set(rows)]
        for task in (TASK, RETAINED):
            model = self.frame.items[BASE, task, split]
            answers = self._answers[task, split]
            scores = answers.right(self.true_scores(task, share))
            found[BASE, task, split] = replace(model, scores=answers.of_base(self.base[task]))
            for name in names:
                found[name, task, split] = replace(model, scores=scores[self.rows[name]])
        return found

    def net(self, label: str) -> float:
        weights = self.frame.config.objective.weights
        return weights[0] * self.gain[label] - weights[1] * self.loss[label]

    @property
    def best(self) -> float:
        """Net gain of the best arm that keeps the limit, or of none."""
        limit = self.frame.config.objective.max_forgetting
        kept = [x for x in self.gain if limit is None or self.loss[x] <= limit]
        return max([0.0, *map(self.net, kept)])


class _Items:
    """Answers of M models on one split, the same luck at every share of the steps."""

    def __init__(self, world: World, rng: np.random.Generator, models: int) -> None:
        n = world.items
        self.two_parameters = world.two_parameters
        if world.two_parameters:
            self.difficulty, self.slope = rng.normal(0, 1.2, n), rng.lognormal(0, 0.3, n)
            luck, agreement = rng.uniform(size=n), 0.7
        else:
            luck, agreement = rng.uniform(size=n), 0.8
        own = rng.uniform(size=(models + 1, n))
        shared = rng.uniform(size=(models + 1, n)) < agreement
        self.luck = np.where(shared, luck, own)

    def right(self, accuracy: Array) -> Array:
        return self._right(accuracy, self.luck[1:])

    def of_base(self, accuracy: float) -> Array:
        return self._right(np.array([accuracy]), self.luck[:1])[0]

    def _right(self, accuracy: Array, luck: Array) -> Array:
        if not self.two_parameters:
            return (luck < accuracy[:, None]).astype(float)
        ability = np.interp(accuracy, *_ability_table())[:, None]
        odds = self.slope * (ability - self.difficulty)
        return (luck < 1 / (1 + np.exp(-odds))).astype(float)


@lru_cache(maxsize=1)
def _ability_table() -> tuple[Array, Array]:
    """Accuracy over all items that could be drawn, and the ability that has it."""
    rng = np.random.default_rng(6)
    difficulty, slope = rng.normal(0, 1.2, 20_000), rng.lognormal(0, 0.3, 20_000)
    abilities = np.linspace(-9, 9, 361)
    means = [float((1 / (1 + np.exp(-slope * (a - difficulty)))).mean()) for a in abilities]
    return np.array(means), abilities


def _deviations(world: World, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if world.heavy:
        return rng.standard_t(3, shape) / np.sqrt(3)
    return rng.standard_normal(shape)


def _places(specs: Iterable[TrialSpec], spec: TrialSpec) -> tuple[float, float]:
    """Where an arm lies among the ranks, full fine-tuning last, and among its own rates: 0 to 1."""
    ranks = sorted({s.rank for s in specs if s.rank is not None})
    rates = sorted({s.lr for s in specs if s.is_full == spec.is_full})
    rank = 1.0 if spec.rank is None else ranks.index(spec.rank) / len(ranks)
    return rank, rates.index(spec.lr) / max(1, len(rates) - 1)


def final_scores(
    world: World, arms: list[TrialSpec], rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The base's true scores, and the true mean of every arm at the end, by task and label."""
    final: dict[str, dict[str, float]] = {TASK: {}, RETAINED: {}}
    best_rate, drift = rng.uniform(0, 1), rng.normal(0, 0.2)
    steep = rng.uniform(0.02, 0.3)
    truth = TRUTHS[world.truth][0] if world.truth else None
    base = dict(BASE_SCORE)
    if truth is not None:
        base = {TASK: truth.base_accuracy, RETAINED: truth.base_other}
    top, peak = rng.uniform(-0.05, 0.4), rng.uniform(0.2, 1.3)
    bend, lost = rng.uniform(0, 0.9), rng.uniform(0, world.trade_off)
    for spec in arms:
        rank, rate = _places(arms, spec)
        if truth is not None:
            score = truth.accuracy(spec.rank, spec.lr)
            fall = truth.forgetting(spec.rank, spec.lr)
        else:
            score = base[TASK] + top * (1 - bend * (rank - peak) ** 2)
            fall = lost * max(0.0, top) * (0.3 + 0.7 * rank) * (0.5 + 0.5 * rate)
        if world.only_rates:
            # The best rate lies somewhere, a little elsewhere for other ranks.
            rates = len({s.lr for s in arms if s.is_full == spec.is_full})
            nearest = round(np.clip(best_rate + drift * (rank - 0.5), 0, 1) * (rates - 1))
            off = abs(rate * (rates - 1) - nearest) / 2
            score -= steep * off**1.5 + (
                0.01 * rng.standard_normal() if off and truth is None else 0
            )
        final[TASK][spec.arm_label] = float(np.clip(score, 0.02, 0.98))
        final[RETAINED][spec.arm_label] = float(base[RETAINED] - fall)
    return base, final


def _speed(
    world: World, arms: Mapping[str, TrialSpec], spec: TrialSpec, rng: np.random.Generator
) -> tuple[float, float]:
    """How fast an arm learns, and how far it lies behind its course in the middle of training."""
    rank, rate = _places(arms.values(), spec)
    c = world.crossing
    speed = 4 + c * (1.0 - 2 * rank) + c * (1.0 - 2 * rate) + 0.5 * c * rng.standard_normal()
    return float(np.clip(speed, 0.8, 9)), float(max(0, c * 0.04 * rate * rng.uniform()))


@dataclass
class Adaptive:
    """An adaptive study: its records and what it cost."""

    records: StudyRecords
    trainings: float
    """Training tokens, in those of one whole trial; every trial of a study has the same."""
    items_scored: int
    stops: dict[str, Stop]


def run_adaptive(drawn: Drawn, rule: AdaptiveRule = RULE) -> Adaptive:
    """Train a study as the rules of ``advise.adaptive`` say."""
    frame, trials = drawn.frame, drawn.trials
    arms: dict[tuple[object, ...], list[str]] = {}
    for name, trial in trials.items():
        arms.setdefault(trial.spec.arm, []).append(name)
    running = [names[0] for names in arms.values() if trials[names[0]].status == "done"]
    begun = {names[0] for names in arms.values()}
    ended: dict[str, TrialRecords] = {i: trials[i] for i in begun if trials[i].status != "done"}
    cost, stops, items = 0.0, {}, 0
    per_model = 2 * drawn.world.items
    for rung, share in enumerate(rule.rungs):
        cost += len(running) * (share - ([0.0, *rule.rungs])[rung])
        items += len(running) * per_model
        view = _view(frame, {i: trials[i] for i in running}, ended)
        view = replace(view, items=drawn.items(running, "validation", share))
        found = stops_at_rung(view, TASK, rung, rule)
        stops |= found
        running = [i for i in running if i not in found]
    cost += len(running) * (1 - rule.rungs[-1] if rule.rungs else 1.0)
    finished = {i: trials[i] for i in running}
    while True:
        view = _view(frame, finished, ended)
        view = replace(view, items=drawn.items(finished, "validation"))
        specs = next_trials(view, TASK, rule)
        if not specs:
            break
        for spec in specs:
            trial = trials[spec.trial_id]
            (finished if trial.status == "done" else ended)[spec.trial_id] = trial
            cost += trial.status == "done"
    tested = [t.spec.trial_id for arm in finalists(view, TASK) for t in arm.finished]
    items += len(finished) * per_model + len(tested) * per_model
    records = replace(
        frame,
        trials=tuple(t for i, t in trials.items() if i in finished or i in ended),
        items=drawn.items(finished, "validation") | drawn.items(tested, "test"),
    )
    return Adaptive(records, cost, items, stops)


def _view(
    frame: StudyRecords, done: Mapping[str, TrialRecords], ended: Mapping[str, TrialRecords]
) -> StudyRecords:
    """The study with every declared trial; those neither done nor ended are planned."""
    return replace(
        frame,
        trials=tuple(
            done.get(t.spec.trial_id)
            or ended.get(t.spec.trial_id)
            or TrialRecords(t.spec, "planned")
            for t in frame.trials
        ),
    )


def run_grid(drawn: Drawn) -> Adaptive:
    done = [i for i, t in drawn.trials.items() if t.status == "done"]
    items = drawn.items(done, "validation") | drawn.items(done, "test")
    return Adaptive(
        replace(drawn.frame, items=items), len(done), len(done) * 4 * drawn.world.items, {}
    )


def judge(drawn: Drawn, run: Adaptive) -> dict[str, object]:
    """What a study said, and how that compares with the truth."""
    (advice,) = recommend(run.records).advice
    chosen, net = advice.chosen, 0.0
    found: dict[str, object] = {
        "decision": advice.decision,
        "firm": advice.confidence == "firm",
        "label": None if chosen is None else chosen.label,
        "cost": run.trainings,
        "items": run.items_scored,
    }
    if chosen is not None:
        net = drawn.net(chosen.label)
        found["covers"] = _holds(chosen.gain, drawn.gain[chosen.label])
        found["covers_net"] = _holds(chosen.net_gain, net)
        limit = drawn.frame.config.objective.max_forgetting
        if limit is not None and drawn.loss[chosen.label] > limit:
            found["over_limit"] = True
    found["utility"] = net
    found["lost"] = drawn.best - net
    wrong = bool(found.get("over_limit")) or drawn.best - net > MARGIN
    if advice.decision == "not_decided":
        wrong = False
    found["wrong"] = wrong or (chosen is not None and net <= 0)
    return found


def _holds(estimate: object, truth: float) -> bool | None:
    low, high = getattr(estimate, "low", None), getattr(estimate, "high", None)
    return None if low is None or high is None else bool(low <= truth <= high)


def compare(world: World, seed: int, rule: AdaptiveRule = RULE) -> dict[str, object]:
    """One study, both ways."""
    drawn = Drawn(world, seed)
    adaptive = run_adaptive(drawn, rule)
    outranked = sum(s.reason == "outranked" for s in adaptive.stops.values())
    result = {"grid": judge(drawn, run_grid(drawn)), "adaptive": judge(drawn, adaptive)}
    grid, ours = result["grid"], result["adaptive"]
    result["same"] = (grid["decision"], grid["label"]) == (ours["decision"], ours["label"])
    result["parity"] = result["same"] or ours["utility"] >= grid["utility"] - MARGIN
    result["ratio"] = ours["cost"] / grid["cost"]
    result["item_ratio"] = ours["items"] / grid["items"]
    result["outranked"] = outranked
    result["worse"] = len(adaptive.stops) - outranked
    return result


COLUMNS = (
    "world | studies | same decision | or within the margin | firm and wrong (grid) | "
    "firm (grid) | covers (grid) | covers net (grid) | tokens, median (90 %) | points lost (grid)"
)


def share(values: Iterable[object]) -> float:
    known = [bool(v) for v in values if v is not None]
    return 100 * float(np.mean(known)) if known else float("nan")


def row(name: str, results: list[dict]) -> str:
    """One line of the table."""
    ours, grid = ([r[side] for r in results] for side in ("adaptive", "grid"))

    def both(key: str, text: Callable[[list[dict]], str]) -> str:
        return f"{text(ours)} ({text(grid)})"

    ratios = np.array([r["ratio"] for r in results])
    cells = [
        name,
        str(len(results)),
        f"{share(r['same'] for r in results):.1f} %",
        f"{share(r['parity'] for r in results):.1f} %",
        both("", lambda side: f"{share(s['firm'] and s['wrong'] for s in side):.1f}"),
        both("", lambda side: f"{share(s['firm'] for s in side):.0f}"),
        both("", lambda side: f"{share(s.get('covers') for s in side):.1f}"),
        both("", lambda side: f"{share(s.get('covers_net') for s in side):.1f}"),
        f"{np.median(ratios):.3f} ({np.quantile(ratios, 0.9):.3f})",
        both("", lambda side: f"{100 * np.mean([s['lost'] for s in side]):.2f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a world's name")
    parser.add_argument("--json", type=Path, help="append every study as one JSON line")
    args = parser.parse_args()
    print("| " + COLUMNS + " |\n" + "|---" * 10 + "|")
    everything: list[dict] = []
    for world in [w for w in WORLDS.values() if args.only in w.name]:
        found = [compare(world, s) for s in range(args.start, args.start + args.studies)]
        everything += found
        print(row(world.name, found), flush=True)
        if args.json is not None:
            with args.json.open("a") as file:
                for seed, result in enumerate(found, args.start):
                    file.write(json.dumps({"world": world.name, "seed": seed, **result}) + "\n")
    print(row("all", everything))


if __name__ == "__main__":
    main()
