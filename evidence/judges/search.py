"""Simulated studies whose truth is known: what does a search lose, and what is it worth?

    python evidence/judges/search.py [--studies 16] [--start 6000] [--only WORLD]
    python evidence/judges/search.py --records evidence/records/alpha-ranks ...

Every draw of a *world* is a study: final scores of every arm, learning curves, spread between
seeds, items. Sides: the search at 0.235 and at 0.16 of the grid's trainings, a random part of the
trials of the same size, whole, and the whole grid. All decide alike (``advise.decide``); regret is
the true net gain of the best arm, or of the base, minus that of the arm that is recommended. Worlds
with rates beyond the list count those, too. With ``--records`` the trials of a finished grid are
what a search may train; regret is against the highest expected net gain of the whole grid. Prints
tables, and one line of JSON. One thread, NumPy alone; seeds are fixed.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fixtures"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_study import Truth, synthetic_study, with_specs

from kept_records import kept_study
from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import decide
from rankscope.advise.results import expected, task_results
from rankscope.advise.search import finalists, first_designs, next_round
from rankscope.records import (
    BASE,
    EvalKey,
    ItemScores,
    Split,
    StudyRecords,
    TrialRecords,
    TrialSpec,
)

Array = np.ndarray
TASK, RETAINED = "med", "general"
BASE_SCORE = {TASK: 0.4, RETAINED: 0.8}
MARGIN = 0.02


@dataclass(frozen=True)
class World:
    """The distributions that studies are drawn from."""

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
    """How much arms differ in speed; 0: their curves are parallel."""
    late_rates: tuple[float, float] | None = None
    """Slopes of the speed over ranks and over rates; None: drawn for each study."""
    broken: bool = False
    """One LoRA arm loses all that it could."""
    alpha: float | None = None
    """Every rank has it; None: twice the rank."""
    unlisted: tuple[int, int] = (0, 0)
    """LoRA's lowest and highest rates that the lists of the study do not have."""
    trade_off: float = 0.5
    """Forgetting of the most capable arm, in shares of its gain."""

    @property
    def grid(self) -> Truth:
        return Truth(
            ranks=self.ranks,
            lrs=self.lrs,
            full_lrs=self.full_lrs,
            seeds=tuple(range(self.seeds)),
            cross=(),
            num_items=self.items,
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
    World("random, high rates lead late and low ranks early", crossing=1.5, late_rates=(-1, -1)),
    World("random, 150 items", items=150),
    World("random, 1,500 items", items=1500),
    World("random, forgets as much as it gains", trade_off=1.0),
    World("random, 7 ranks", ranks=(2, 4, 8, 16, 32, 64, 128)),
    World("random, 5 rates", lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
)
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
OTHERS = (
    World("one broken arm", broken=True),
    World("narrow list of rates", lrs=RATES, unlisted=(0, 3)),
    World("narrow list, from below", lrs=RATES, unlisted=(3, 0)),
    World("wide list of rates", lrs=RATES, unlisted=(1, 1)),
    World("one alpha for all ranks", alpha=16.0),
)
KINDS = {"random": RANDOM, "others": OTHERS}
WORLDS = {w.name: w for worlds in KINDS.values() for w in worlds}


@cache
def frame_of(world: World) -> StudyRecords:
    """Trials, settings and item ids; every score is replaced."""
    frame = synthetic_study(world.grid)
    if world.alpha:
        frame = with_specs(frame, lambda spec: {"alpha": spec.rank and world.alpha})
    config = frame.config.model_copy(update={"strategy": "search"})
    unknown = np.full(world.items, np.nan)
    return replace(
        frame,
        config=config,
        trials=tuple(replace(t, analyses=()) for t in frame.trials),
        items={k: replace(v, gold_logprobs=unknown) for k, v in frame.items.items()},
    )


@dataclass
class Drawn:
    """One study: the truth of its arms, and every answer of every trial at every share of steps."""

    world: World
    seed: int
    task: str = TASK
    frame: StudyRecords = field(init=False)
    gain: dict[str, float] = field(default_factory=dict)
    """Label of an arm -> its true gain."""
    loss: dict[str, float] = field(default_factory=dict)
    """Label -> its true forgetting."""

    def __post_init__(self) -> None:
        world = self.world
        rng = np.random.default_rng([self.seed, zlib.crc32(world.name.encode())])
        self.frame = frame_of(world)
        self.trials = {t.spec.trial_id: t for t in self.frame.trials}
        low, high = world.unlisted
        listed = set(world.lrs[low : len(world.lrs) - high]) | set(world.full_lrs)
        self.beyond = frozenset(n for n, t in self.trials.items() if t.spec.lr not in listed)
        specs = [t.spec for t in self.frame.trials]
        arms = {s.arm_label: s for s in specs}
        base, final = final_scores(world, list(arms.values()), rng)
        self.base = base
        for label in arms:
            self.gain[label] = final[TASK][label] - base[TASK]
            self.loss[label] = base[RETAINED] - final[RETAINED][label]
        speeds = speeds_of(world, list(arms.values()), rng)
        size = len(specs)
        noise = _deviations(world, rng, (2, 2, size)) * world.spread
        self.rows = {s.trial_id: i for i, s in enumerate(specs)}
        self._change = {
            TASK: np.array([self.gain[s.arm_label] for s in specs]),
            RETAINED: np.array([-self.loss[s.arm_label] for s in specs]),
        }
        self._noise = dict(zip((TASK, RETAINED), noise, strict=True))
        self._speed = {
            task: np.array([speeds[task][s.arm_label] for s in specs]) for task in (TASK, RETAINED)
        }
        self._answers = {
            (task, split): _Items(world, rng, size)
            for task in (TASK, RETAINED)
            for split in ("validation", "test")
        }

    def true_scores(self, task: str, share: float) -> Array:
        """Scores of every trial, (M,), after that share of its steps."""
        speed = self._speed[task]
        reached = (1 - np.exp(-speed * share)) / (1 - np.exp(-speed))
        late, early = self._noise[task]
        # Half of what a seed is off by at the start of training stays to its end.
        seed = late * share + early * (1 - share)
        return np.clip(self.base[task] + self._change[task] * reached + seed, 0.01, 0.99)

    def items(
        self, ids: Iterable[str], split: Split, share: float = 1.0
    ) -> dict[EvalKey, ItemScores]:
        found = {}
        names = list(ids)
        for task in (TASK, RETAINED):
            model = self.frame.items[BASE, task, split]
            answers = self._answers[task, split]
            scores = answers.right(self.true_scores(task, share))
            found[BASE, task, split] = replace(model, scores=answers.of_base(self.base[task]))
            for name in names:
                found[name, task, split] = replace(model, scores=scores[self.rows[name]])
        return found

    @property
    def listed(self) -> dict[str, TrialRecords]:
        return {n: t for n, t in self.trials.items() if n not in self.beyond}

    def of(self, trials: Mapping[str, TrialRecords]) -> "Drawn":
        """The study with some of its trials alone."""
        part = copy(self)
        part.trials, part.beyond = dict(trials), frozenset()
        return part

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
    base = dict(BASE_SCORE)
    top, peak = rng.uniform(-0.05, 0.4), rng.uniform(0.2, 1.3)
    bend, lost = rng.uniform(0, 0.9), rng.uniform(0, world.trade_off)
    for spec in arms:
        rank, rate = _places(arms, spec)
        score = base[TASK] + top * (1 - bend * (rank - peak) ** 2)
        fall = lost * max(0.0, top) * (0.3 + 0.7 * rank) * (0.5 + 0.5 * rate)
        # The best rate lies somewhere, a little elsewhere for other ranks.
        rates = len({s.lr for s in arms if s.is_full == spec.is_full})
        nearest = round(np.clip(best_rate + drift * (rank - 0.5), 0, 1) * (rates - 1))
        off = abs(rate * (rates - 1) - nearest) / 2
        score -= steep * off**1.5 + (0.01 * rng.standard_normal() if off else 0)
        final[TASK][spec.arm_label] = float(np.clip(score, 0.02, 0.98))
        final[RETAINED][spec.arm_label] = float(base[RETAINED] - fall)
    if world.broken:
        label = rng.choice([spec.arm_label for spec in arms if not spec.is_full])
        final[TASK][label] = 0.02
    return base, final


def speeds_of(
    world: World, arms: list[TrialSpec], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """How fast every arm learns and forgets: task, label -> rate of an exponential approach.

    6: most of it in the first third; 0: a straight line; below 0: most of it late.
    """
    by_rank, by_rate = rng.uniform(-1, 1, 2) if world.late_rates is None else world.late_rates
    ahead = rng.uniform(-0.5, 1.0)
    found: dict[str, dict[str, float]] = {TASK: {}, RETAINED: {}}
    for spec in arms:
        rank, rate = _places(arms, spec)
        slope = by_rank * (2 * rank - 1) + by_rate * (2 * rate - 1) + 0.3 * rng.standard_normal()
        speed = 2.5 + 2 * world.crossing * np.array([slope, slope + ahead])
        for task, value in zip(found, np.clip(speed, -3, 9), strict=True):
            found[task][spec.arm_label] = float(value) or 1e-6
    return found


class Oracle(Protocol):
    """A study all of whose scores are known, whatever is trained of it."""

    frame: StudyRecords
    trials: Mapping[str, TrialRecords]
    task: str

    def items(
        self, ids: Iterable[str], split: Split, share: float = 1.0
    ) -> dict[EvalKey, ItemScores]:
        """Item scores of the base and of trials after that share of their steps."""


@dataclass
class Played:
    """A study as it was trained."""

    records: StudyRecords
    trainings: int  # Whole trials; a trial that fails costs nothing


def play_search(study: Oracle, budget: float, beyond: frozenset[str] = frozenset()) -> Played:
    """Train a study as ``advise.search`` says.

    Args:
        budget: whole trials.
        beyond: those of rates that its lists do not have.
    """
    listed = [t.spec for name, t in study.trials.items() if name not in beyond]
    begun: dict[str, TrialRecords] = {}
    asked = list(first_designs(listed, [study.task]))
    while asked and _trained(begun) < budget:
        for spec in asked:
            if _trained(begun) < budget:
                begun[spec.trial_id] = study.trials[spec.trial_id]
        view = played(study, begun, beyond)
        arms = {trial.spec.arm for trial in begun.values()}
        left = [t.spec for name, t in study.trials.items() if name not in begun]
        more = [spec for spec in left if spec.trial_id in beyond and spec.arm not in arms]
        own = [spec for spec in left if spec not in more]
        asked = list(next_round(view, study.task, own, more).trials)
    view = played(study, begun, beyond)
    tested = [t.spec.trial_id for arm in finalists(view, study.task) for t in arm.finished]
    return Played(played(study, begun, beyond, tested), _trained(begun))


def play_random(study: Oracle, budget: float, seed: int) -> Played:
    """Train random trials of a study, whole."""
    names = np.random.default_rng(seed).permutation(list(study.trials)).tolist()
    begun: dict[str, TrialRecords] = {}
    for name in names:
        if _trained(begun) < budget:
            begun[name] = study.trials[name]
    return Played(played(study, begun, tested=list(begun)), _trained(begun))


def play_grid(study: Oracle) -> Played:
    """Train every trial of a study."""
    return play_random(study, len(study.trials), 0)


def _trained(begun: Mapping[str, TrialRecords]) -> int:
    return sum(trial.status == "done" for trial in begun.values())


def played(
    study: Oracle,
    begun: Mapping[str, TrialRecords],
    beyond: frozenset[str] = frozenset(),
    tested: Sequence[str] = (),
) -> StudyRecords:
    """The study with the trials that have begun, ``tested`` ones with test items, too; the others
    of its lists are planned."""
    done = [name for name, trial in begun.items() if trial.status == "done"]
    items = study.items(done, "validation")
    if tested:
        items |= study.items([name for name in done if name in tested], "test")
    trials = (
        begun.get(name) or TrialRecords(trial.spec, "planned")
        for name, trial in study.trials.items()
        if name in begun or name not in beyond
    )
    return replace(study.frame, trials=tuple(trials), items=items)


def judge(drawn: Drawn, run: Played) -> dict[str, float]:
    """Count what a study's answer loses, and how sure it is. An arm over the limit on forgetting
    is worth no more than the base."""
    answer = decide(task_results(run.records, drawn.task, summarize_arms(run.records)[drawn.task]))
    limit, net = drawn.frame.config.objective.max_forgetting, 0.0
    if (label := answer.chosen and answer.chosen.label) is not None:
        over = limit is not None and drawn.loss[label] > limit
        net = 0.0 if over else drawn.net(label)
    return {
        "lost": drawn.best - net,
        "p": answer.p_within_margin or 0.0,
        "tokens": run.trainings / _trained(drawn.listed),
    }


SHARES = (0.235, 0.16)


def compare(world: World, seed: int) -> dict[str, dict[str, float]]:
    """One study by every side."""
    drawn, found = Drawn(world, seed), dict[str, dict[str, float]]()
    listed = drawn.listed
    for share in SHARES:
        budget = round(share * _trained(listed))
        found[f"search {share}"] = judge(drawn, play_search(drawn, budget, drawn.beyond))
        if drawn.beyond:
            listed_alone = play_search(drawn.of(listed), budget)
            found[f"its lists alone {share}"] = judge(drawn, listed_alone)
        found[f"random {share}"] = judge(drawn, play_random(drawn.of(listed), budget, seed))
    return found | {"grid": judge(drawn, play_grid(drawn.of(listed)))}


def print_table(rows: Sequence[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """A line for each side: regret with its 95 % interval, and the same of the difference to the
    first side, in points."""
    print(
        f"\n| {name}, {len(rows)} studies | regret | 95th percentile | within | stated |"
        " tokens | above the first |\n|---|---|---|---|---|---|---|"
    )
    summary = {}
    first = np.array([next(iter(row["sides"].values()))["lost"] for row in rows])
    for side in rows[0]["sides"]:
        lost, p, tokens = np.array([list(row["sides"][side].values()) for row in rows]).T
        (mean, error), (more, doubt) = map(_mean, (100 * lost, 100 * (lost - first)))
        print(
            f"| {side} | {mean:.2f} ± {error:.2f} | {100 * np.quantile(lost, 0.95):.1f} | "
            f"{np.mean(lost <= MARGIN):.3f} | {p.mean():.3f} | {tokens.mean():.3f} | "
            f"{more:+.2f} ± {doubt:.2f} |"
        )
        summary[side] = {"regret": mean, "error": error, "tokens": float(tokens.mean())}
    return summary


def _mean(values: Array) -> tuple[float, float]:
    return float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5


@dataclass
class Stored:
    """A finished grid: what was scored is what a trial would measure. ``first`` is the seed that
    stands in the place of the first."""

    study: StudyRecords
    task: str
    first: int = 0

    def __post_init__(self) -> None:
        of_task = [t for t in self.study.trials if t.spec.task == self.task]
        done = [t for t in of_task if t.status == "done" and t.spec.trains]
        done.sort(key=lambda trial: trial.spec.seed != self.first)
        self.trials = {t.spec.trial_id: t for t in done}
        config = self.study.config.model_copy(update={"strategy": "search", "budget": None})
        self.frame = replace(self.study, config=config)

    def items(
        self, ids: Iterable[str], split: Split, share: float = 1.0
    ) -> dict[EvalKey, ItemScores]:
        models = {BASE, *ids}
        return {k: v for k, v in self.study.items.items() if k[0] in models and k[2] == split}


def print_records(folders: Sequence[Path]) -> None:
    """Replay finished grids."""
    print("| study | trials | chosen by the grid | by the search | points lost | share |")
    print("|---|---|---|---|---|---|")
    points: dict[str, float] = {}
    for folder in folders:
        study = kept_study(folder)
        for task in dict.fromkeys(trial.spec.task for trial in study.trials):
            stored = Stored(study, task)
            grid = play_grid(stored).records
            results = task_results(grid, task, summarize_arms(grid)[task])
            nets = {a.summary.label: expected(a.summary).net.value for a in results.arms}
            run = play_search(stored, round(0.25 * len(stored.trials)))
            found = task_results(run.records, task, summarize_arms(run.records)[task])
            labels = [
                answer.chosen.label if answer.chosen else ""
                for answer in (decide(results), decide(found))
            ]
            lost = 100 * (max(0.0, *nets.values()) - nets.get(labels[1], 0.0))
            cells = [f"{study.name}, {task}", len(stored.trials), *labels, f"{lost:.1f}"]
            cells.append(f"{run.trainings / len(stored.trials):.2f}")
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            points[str(cells[0])] = round(lost, 3)
    print(json.dumps({"benchmark": "search_records", "lost": points}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=16)
    parser.add_argument("--start", type=int, default=6000)
    parser.add_argument("--only", default="", help="part of a world's name")
    parser.add_argument("--records", type=Path, nargs="+", help="replay these finished grids")
    args = parser.parse_args()
    if args.records:
        print_records(args.records)
        return
    rows: list[dict[str, Any]] = []
    worlds = [w for w in WORLDS.values() if args.only in w.name]
    for seed in range(args.start, args.start + args.studies):
        for world in worlds:
            rows.append({"world": world.name, "seed": seed, "sides": compare(world, seed)})
    shown: dict[str, Any] = {}
    groups = {f"all {kind}": {w.name for w in of_kind} for kind, of_kind in KINDS.items()}
    groups |= {name: {name} for name in dict.fromkeys(row["world"] for row in rows)}
    for name, names in groups.items():
        if len(of_name := [row for row in rows if row["world"] in names]) > 1:
            shown[name] = print_table(of_name, name)
    print(json.dumps({"benchmark": "search", "worlds": shown}))


if __name__ == "__main__":
    main()
