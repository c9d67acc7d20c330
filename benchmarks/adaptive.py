"""Simulated studies, trained adaptively and as a whole grid: the same decision, at what cost?

    python benchmarks/adaptive.py [--studies 500] [--only WORLD] [--start 0] [--json FILE]

Every draw of a *world* is a study whose truth is known: final scores of every arm, how they got
there (learning curves at the rungs), spread between seeds, items. The grid trains every arm and
seed; the adaptive study asks ``advise.adaptive`` what to stop and what to train next. Both are
judged by the product's own decision. Prints the tables of
docs/findings/2026-11-26-adaptive-studies.md. One thread, NumPy alone; seeds are fixed.
"""

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study

from rankscope.advise.adaptive import RUNGS, finalists, next_trials, stops_at_rung
from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import decide
from rankscope.advise.results import task_results
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalKey,
    ItemScores,
    Split,
    StopRecord,
    StudyRecords,
    TrialRecords,
    TrialSpec,
)
from simulate_studies import TRUTHS

Array = np.ndarray
TASK, RETAINED = "med", "general"
BASE_SCORE = {TASK: 0.4, RETAINED: 0.8}
MARGIN = 0.02


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
    """How much arms differ in speed; 0: their curves are parallel."""
    late_rates: tuple[float, float] | None = None
    """Slopes of the speed over ranks and over rates; None: drawn for each study."""
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
    World("random, high rates lead late and low ranks early", crossing=1.5, late_rates=(-1, -1)),
    World("random, 150 items", items=150),
    World("random, 1,500 items", items=1500),
    World("random, forgets as much as it gains", trade_off=1.0),
    World("random, 7 ranks", ranks=(2, 4, 8, 16, 32, 64, 128)),
    World("random, 5 rates", lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
)
TWO_RATES = (
    World("two rates", lrs=(1e-3, 3e-3)),
    World("two rates, 2PL heavy", lrs=(1e-3, 3e-3), two_parameters=True, heavy=True, spread=0.02),
    World("two rates, late", lrs=(1e-3, 3e-3), crossing=1.5, late_rates=(-1, -1)),
)
KINDS = {"random": RANDOM, "known": EXISTING, "one rate": AS_THEY_ARE, "two rates": TWO_RATES}
WORLDS = {w.name: w for worlds in KINDS.values() for w in worlds}


@cache
def frame_of(world: World) -> StudyRecords:
    """Trials, settings and item ids; every score is replaced."""
    frame = synthetic_study(world.grid)
    unknown = np.full(world.items, np.nan)
    return replace(
        frame,
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
        """Of every trial, (M,), after that share of its steps."""
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
        if share < 1:  # at a rung
            first = self.frame.config.train.evaluate_items
            found = {key: _first_items(items, first) for key, items in found.items()}
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


def _first_items(items: ItemScores, n: int) -> ItemScores:
    return ItemScores(
        items.item_ids[:n], items.scores[:n], items.gold_logprobs[:n], items.subjects[:n]
    )


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
    """A study as it was trained: its records and what that cost."""

    records: StudyRecords
    trainings: float
    """Training tokens, in those of one whole trial; every trial of a study has the same."""
    scored: int
    """Answers of trained models."""
    stops: dict[str, StopRecord] = field(default_factory=dict)


def play_adaptive(study: Oracle, rungs: Sequence[float] = RUNGS) -> Played:
    """Train a study as the rules of ``advise.adaptive`` say."""
    frame, task = study.frame, study.task
    trials = dict(study.trials)
    first: dict[tuple[object, ...], str] = {}
    for name, trial in trials.items():
        first.setdefault(trial.spec.arm, name)
    ended = {i: trials[i] for i in first.values() if trials[i].status != "done"}
    running = [i for i in first.values() if i not in ended]
    cost, scored, stops = 0.0, 0, {}
    earlier: StudyRecords | None = None
    for before, share in itertools.pairwise([0.0, *rungs]):
        cost += len(running) * (share - before)
        items = study.items(running, "validation", share)
        for i in running:
            trials[i] = _with_points(trials[i], items, share)
        view = _view(frame, {i: trials[i] for i in running}, ended)
        view = replace(view, items=items)
        scored += _answers(view.items)
        found = stops_at_rung(view, task, _one, earlier, is_last=share == rungs[-1])
        earlier = view
        stops |= found
        ended |= {i: _stopped(trials[i], share) for i in found}
        running = [i for i in running if i not in found]
    cost += len(running) * (1 - max(rungs, default=0.0))
    finished = {i: trials[i] for i in running}
    while True:
        view = _view(frame, finished, ended)
        view = replace(view, items=study.items(finished, "validation"))
        specs = next_trials(view, task)
        if not specs:
            break
        for spec in specs:
            trial = trials[spec.trial_id]
            (finished if trial.status == "done" else ended)[spec.trial_id] = trial
            cost += trial.status == "done"
    tested = [t.spec.trial_id for arm in finalists(view, task) for t in arm.finished]
    records = replace(
        frame,
        trials=tuple(t for i, t in ({**trials, **ended}).items() if i in finished or i in ended),
        items=study.items(finished, "validation") | study.items(tested, "test"),
    )
    return Played(records, cost, scored + _answers(records.items), stops)


def _one(trial: TrialSpec) -> int:
    """Steps of a whole training, which no rule looks at."""
    return 1


def _with_points(
    trial: TrialRecords, items: Mapping[EvalKey, ItemScores], share: float
) -> TrialRecords:
    """A trial that was scored at a rung."""
    name, train = trial.spec.trial_id, trial.train
    assert train is not None
    points = tuple(
        CurvePoint.model_construct(
            trial_id=name,
            task=task,
            step=round(share * train.steps),
            metric="accuracy",
            score=float(found.scores.mean()),
            standard_error=None,
            n=len(found.scores),
            seconds=0.0,
            num_tokens=0,
            item_scores=tuple(found.scores.tolist()),
            gold_logprobs=(None,) * len(found.scores),
        )
        for (model, task, _), found in items.items()
        if model == name
    )
    return replace(trial, curve=(*trial.curve, *points))


def _stopped(trial: TrialRecords, share: float) -> TrialRecords:
    train = trial.train
    assert train is not None
    stop = StopRecord.model_construct(
        trial_id=trial.spec.trial_id,
        num_steps=train.steps,
        train=train.model_copy(update={"steps": round(share * train.steps)}),
    )
    return replace(trial, status="stopped", train=None, stop=stop)


def play_grid(study: Oracle) -> Played:
    """Train every trial of a study."""
    done = [i for i, t in study.trials.items() if t.status == "done"]
    items = study.items(done, "validation") | study.items(done, "test")
    return Played(replace(study.frame, items=items), len(done), _answers(items))


def _answers(items: Mapping[EvalKey, ItemScores]) -> int:
    return sum(len(s.scores) for (model, _, _), s in items.items() if model != BASE)


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


def judge(drawn: Drawn, run: Played) -> dict[str, object]:
    """What a study said, and how that compares with the truth. An arm over the limit on forgetting
    is worth no more than the base."""
    arms = summarize_arms(run.records)[drawn.task]
    answer = decide(task_results(run.records, drawn.task, arms))
    chosen = answer.chosen
    net = 0.0
    found: dict[str, object] = {
        "decision": answer.decision,
        "p": answer.p_within_margin,
        "firm": (answer.p_within_margin or 0.0) >= 0.95,
        "label": None if chosen is None else chosen.label,
        "cost": run.trainings,
        "items": run.scored,
    }
    if chosen is not None:
        net = drawn.net(chosen.label)
        found["covers"] = _holds(chosen.gain, drawn.gain[chosen.label])
        found["covers_net"] = _holds(getattr(chosen.expected, "net", None), net)
        limit = drawn.frame.config.objective.max_forgetting
        if limit is not None and drawn.loss[chosen.label] > limit:
            found["over_limit"] = True
        if found.get("over_limit"):
            net = 0.0
    found["utility"] = net
    found["lost"] = drawn.best - net
    wrong = bool(found.get("over_limit")) or drawn.best - net > MARGIN
    if answer.decision == "not_decided":
        wrong = False
    found["wrong"] = wrong or (chosen is not None and net <= 0)
    return found


def _holds(estimate: object, truth: float) -> bool | None:
    low, high = getattr(estimate, "low", None), getattr(estimate, "high", None)
    return None if low is None or high is None else bool(low <= truth <= high)


def compare(world: World, seed: int) -> dict[str, object]:
    """One study, both ways."""
    drawn = Drawn(world, seed)
    adaptive = play_adaptive(drawn)
    result = {"grid": judge(drawn, play_grid(drawn)), "adaptive": judge(drawn, adaptive)}
    grid, ours = result["grid"], result["adaptive"]
    result["same"] = (grid["decision"], grid["label"]) == (ours["decision"], ours["label"])
    breaks_limit = ours.get("over_limit", False) and not grid.get("over_limit", False)
    is_near = ours["utility"] >= grid["utility"] - MARGIN and not breaks_limit
    result["parity"] = result["same"] or is_near
    result["ratio"] = ours["cost"] / grid["cost"]
    result["item_ratio"] = ours["items"] / grid["items"]
    result["stopped"] = len(adaptive.stops)
    return result


COLUMNS = (
    "world | studies | same decision | or within the margin | sure and wrong (grid) | "
    "sure (grid) | covers (grid) | covers net (grid) | tokens, median (90 %) | points lost (grid)"
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


def print_table(results: list[dict]) -> None:
    """One line a world, and one for all of each kind."""
    print("| " + COLUMNS + " |\n" + "|---" * (COLUMNS.count("|") + 1) + "|")
    for name in dict.fromkeys(r["world"] for r in results):
        print(row(name, [r for r in results if r["world"] == name]), flush=True)
    for kind, worlds in KINDS.items():
        names = {w.name for w in worlds}
        if of_kind := [r for r in results if r["world"] in names]:
            print(row(f"all {kind}", of_kind), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="random")
    parser.add_argument("--only", default="", help="part of a world's name")
    parser.add_argument("--json", type=Path, help="append every study to this file, a line each")
    parser.add_argument("--table", type=Path, help="only print the table of such a file")
    args = parser.parse_args()
    if args.table is not None:
        print_table([json.loads(line) for line in args.table.read_text().splitlines()])
        return
    results: list[dict] = []
    worlds = [w for w in KINDS[args.kind] if args.only in w.name]
    for seed in range(args.start, args.start + args.studies):
        for world in worlds:
            results.append({"world": world.name, "seed": seed, **compare(world, seed)})
            if args.json is not None:
                with args.json.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print_table(sorted(results, key=lambda r: worlds.index(WORLDS[r["world"]])))


if __name__ == "__main__":
    main()
