"""Studies are drawn here from random truths that the advice knows nothing of, by kind.

Each item has a difficulty and a discrimination (2PL). Seeds lie apart by Student's t of 3. Ability
gains and losses over the rank follow random parabolas. The true net gain of an arm is the change of
its training task minus the mean fall of its retention tasks: 0.01 of accuracy counts as much as
0.01 nats. It is a mean over seeds, items and passages that were not drawn. A model that hardly
trained (low rates, few rows) answers as the base does, item by item.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study, with_objective, with_specs, with_tasks

from rankscope.config.objective import ObjectiveConfig
from rankscope.records import BASE, EvalKey, ItemScores, StudyRecords, TrialSpec

Array = np.ndarray
SEEDS_OF_TRUTH = stats.t(3).ppf((np.arange(80) + 0.5) / 80)[:, None]
ITEMS_OF_TRUTH = 4000
_ORDER = np.random.default_rng(0).permutation
PASSAGES_APART = 0.4  # Standard deviation between the passages of a change, in logits
PASSAGES_OF_TRUTH = PASSAGES_APART * stats.norm.ppf(
    _ORDER((np.arange(ITEMS_OF_TRUTH) + 0.5) / ITEMS_OF_TRUTH)
)
MOST_LEFT = 0.3  # Share of its gain that a collapsed seed has, at the most
LEFT_OF_TRUTH = MOST_LEFT * _ORDER((np.arange(80) + 0.5) / 80)[:, None]


@dataclass(frozen=True)
class Kind:
    """The distributions that studies of one kind are drawn from."""

    name: str
    seeds: tuple[int, int] = (1, 5)  # Fewest and most
    items: tuple[int, int] = (160, 1200)  # Of both splits together
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    lrs: tuple[float, ...] = (1e-3,)
    alphas: tuple[float, ...] = ()  # Each with as many of the rates, in turn; else 2 r
    tasks: tuple[str, ...] = ("med",)
    retention: tuple[str, ...] = ("general",)
    retained: int = 0  # Items of a split of each retention task; 0: as many as of the others
    passages: int = 0  # They share out the items of every task, and their changes differ
    gain: tuple[float, float] = (0.4, 0.5)  # Mean and standard deviation of the largest, in logits
    loss: float = 0.25  # Standard deviation of the largest
    eaten: bool = False  # The loss is about as large as the gain
    unequal: bool = False  # Seeds of some arms are further apart than those of others
    rough: bool = False  # Ranks are not smooth
    nats: bool = False
    keeps_points: bool = False  # Retention is right or wrong although the gain is in nats
    failed: bool = False  # One seed of one arm failed
    collapses: float = 0.0  # Probability that a seed loses most of its gain
    hardly: bool = False  # Low rates hardly train


KINDS = (
    Kind("usual"),
    Kind("80 to 200 items", items=(80, 200)),
    Kind("1,500 items", items=(1500, 1500), seeds=(2, 5)),
    Kind("one seed", seeds=(1, 1)),
    Kind("ranks 2 to 128, 3 rates", ranks=(2, 4, 8, 16, 32, 64, 128), lrs=(3e-4, 1e-3, 3e-3)),
    Kind("gains near 0", gain=(0.0, 0.06)),
    Kind("nothing gained or lost", gain=(0.0, 0.0), loss=0.0),
    Kind("forgetting eats the gain", gain=(0.4, 0.3), eaten=True),
    Kind("nats", nats=True),
    Kind("unequal seeds", unequal=True),
    Kind("ranks that are not smooth", rough=True),
    Kind("two training tasks", tasks=("med", "law")),
    Kind("a failed seed", failed=True, seeds=(2, 5)),
    Kind("300 items, 3 seeds", items=(300, 300), seeds=(3, 3)),
    Kind("nats, once more", nats=True),
    Kind("rates that hardly train", lrs=(1e-5, 1e-4, 1e-3), hardly=True),
    Kind("the same, in nats", lrs=(1e-5, 1e-4, 1e-3), hardly=True, nats=True),
    Kind(
        "ranks, alphas and rates",
        seeds=(1, 2),
        ranks=(8, 32, 128),
        lrs=(1e-3, 2e-3, 4e-3, 4e-4, 8e-4, 1.6e-3, 1.6e-4, 3.2e-4, 6.4e-4),
        alphas=(16, 64, 256),
        nats=True,
    ),
    Kind("30 retention items", retained=30),
    Kind("100 retention items", retained=100),
    Kind("four retention tasks", retention=("general", "facts", "sums", "code"), retained=100),
    Kind("nats and points mixed", nats=True, keeps_points=True),
    Kind("8 passages", gain=(0.2, 0.3), passages=8),
    Kind("seeds that collapse", seeds=(2, 5), gain=(0.8, 0.4), collapses=0.15),
    Kind("one alpha for all ranks", lrs=(3e-4, 9e-4, 2.7e-3), alphas=(32,)),
)
BY_NAME = {kind.name: kind for kind in KINDS}


@lru_cache(maxsize=64)
def _frame(kind: Kind, seeds: int, items: int) -> StudyRecords:
    failed = {(kind.ranks[0], kind.lrs[0], 0): "diverged"} if kind.failed else {}
    truth = Truth(
        ranks=kind.ranks,
        lrs=kind.lrs,
        full_lrs=tuple(lr / 2 for lr in kind.lrs),
        tasks=kind.tasks,
        seeds=tuple(range(seeds)),
        retention=kind.retention,
        num_items=items // 2,
        items_of=dict.fromkeys(kind.retention, kind.retained or items // 2),
        subjects=kind.passages or 1,
        cross=(),
        failed=failed,
        metric="log_probability" if kind.nats else "accuracy",
    )
    frame = synthetic_study(truth)
    if kind.alphas:
        of_rate = dict(
            zip(kind.lrs, np.repeat(kind.alphas, len(kind.lrs) // len(kind.alphas)), strict=True)
        )
        frame = with_specs(frame, lambda s: {"alpha": float(of_rate[s.lr])} if s.rank else {})
    if kind.keeps_points:
        points = {"metric": "acc", "score_unit": "accuracy", "chance": 0.25}
        frame = with_tasks(frame, **dict.fromkeys(kind.retention, points))
    # Where nats are weighed as shares of a gain by default, the truths here need them as they are.
    has_scale = kind.nats and "scale" in ObjectiveConfig.model_fields
    return with_objective(frame, scale="nats") if has_scale else frame


@dataclass
class RandomTruth:
    """A study that was drawn, with the true net gain of its arms by training task and label."""

    study: StudyRecords
    net: dict[str, dict[str, float]] = field(default_factory=dict)


def draw(kind: Kind, seed: int) -> RandomTruth:
    """Draw a study of one kind; equal arguments give equal records."""
    rng = np.random.default_rng([seed, list(BY_NAME).index(kind.name), 4])
    seeds, items = (int(rng.integers(low, high + 1)) for low, high in (kind.seeds, kind.items))
    frame = _frame(kind, seeds, items // 2 * 2)
    drawn = RandomTruth(frame)
    specs = {trial.spec.trial_id: trial.spec for trial in frame.trials}
    names = (*kind.tasks, *kind.retention)
    in_nats = {n: kind.nats and not (kind.keeps_points and n in kind.retention) for n in names}
    bases = {name: rng.normal(0, 0.5) for name in names}
    tests = {name: (rng.normal(0, 1.2, ITEMS_OF_TRUTH), rng.lognormal(0, 0.3, ITEMS_OF_TRUTH))
             for name in names}  # fmt: skip
    of_passages = PASSAGES_OF_TRUTH if kind.passages else 0.0

    def mean(name: str, change: Array, of_items: Array | float) -> float:
        """The mean score of models whose ability on a task changed, by seed and by item."""
        difficulty, slope = tests[name]
        logits = slope * (bases[name] + change + of_items - difficulty)
        return float((-np.log1p(np.exp(-logits)) if in_nats[name] else _sigmoid(logits)).mean())

    abilities: dict[tuple[str, str], float] = {}
    for task in kind.tasks:
        spread = rng.uniform(0.02, 0.15)
        gain = rng.normal(*kind.gain)
        losses = [abs(rng.normal(0, kind.loss)) for _ in kind.retention]
        if kind.eaten:
            gain = abs(gain)
            losses = [gain * rng.uniform(0.7, 1.3) for _ in losses]
        of_task = [spec for spec in specs.values() if spec.task == task]
        arms = {spec.arm_label: spec for spec in of_task}
        changes = {task: _changes(kind, arms, gain, rng)}
        for name, loss in zip(kind.retention, losses, strict=True):
            changes[name] = {k: -v for k, v in _changes(kind, arms, loss, rng).items()}
        own = {k: spread * (rng.lognormal(0, 0.7) if kind.unequal else 1.0) for k in arms}
        if kind.hardly:
            own = {label: spread * _trained(spec) for label, spec in arms.items()}
        for spec in of_task:
            collapsed = kind.collapses and rng.uniform() < kind.collapses
            for name, of_arms in changes.items():
                change = of_arms[spec.arm_label]
                if collapsed and name == task and change > 0:
                    change *= rng.uniform(0, MOST_LEFT)
                deviation = own[spec.arm_label] * rng.standard_t(3)
                abilities[spec.trial_id, name] = bases[name] + change + deviation
        drawn.net[task] = {}
        for label in arms:
            net = 0.0
            for name, of_arms in changes.items():
                change, apart = of_arms[label], own[label] * SEEDS_OF_TRUTH
                score = mean(name, change + apart, of_passages)
                if kind.collapses and name == task and change > 0:
                    collapsed_score = mean(name, change * LEFT_OF_TRUTH + apart, of_passages)
                    score += kind.collapses * (collapsed_score - score)
                share = 1.0 if name == task else 1 / len(kind.retention)
                net += share * (score - mean(name, np.zeros((1, 1)), 0.0))
            # A trial that failed counts as no gain.
            ended = [t.status == "done" for t in frame.trials if t.spec.arm_label == label]
            drawn.net[task][label] = net * float(np.mean(ended))
    drawn.study = replace(frame, items=_answers(kind, frame, bases, abilities, in_nats, rng))
    return drawn


def _answers(
    kind: Kind,
    frame: StudyRecords,
    bases: dict[str, float],
    abilities: dict[tuple[str, str], float],
    in_nats: dict[str, bool],
    rng: np.random.Generator,
) -> dict[EvalKey, ItemScores]:
    """Draw the answers of the base and of every trial to items of every task.

    Args:
        abilities: by trial and task.
    """
    found, specs = dict(frame.items), {t.spec.trial_id: t.spec for t in frame.trials}
    for name, base in bases.items():
        apart = _apart(kind, specs, rng)
        for split in ("validation", "test"):
            n = len(found[BASE, name, split].scores)
            difficulty, slope = rng.normal(0, 1.2, n), rng.lognormal(0, 0.3, n)
            shared, luck_of_base = rng.uniform(size=n), np.zeros(n)
            for model in (BASE, *specs):
                ability = base if model == BASE else abilities.get((model, name))
                if ability is None or (key := (model, name, split)) not in found:
                    continue
                if in_nats[name]:
                    luck = 0.15 * rng.standard_t(4, n)
                else:
                    luck = np.where(rng.uniform(size=n) < 0.7, shared, rng.uniform(size=n))
                if model == BASE:
                    luck_of_base = luck
                elif kind.hardly:
                    is_own = rng.uniform(size=n) < _trained(specs[model])
                    luck = np.where(is_own, luck, luck_of_base)
                if model in apart:
                    ability = ability + apart[model][np.arange(n) % kind.passages]
                logits = slope * (ability - difficulty)
                if in_nats[name]:
                    scores = gold = luck - np.log1p(np.exp(-logits))
                else:
                    scores, gold = (luck < _sigmoid(logits)).astype(float), np.full(n, np.nan)
                found[key] = replace(found[key], scores=scores, gold_logprobs=gold)
    return found


def _apart(kind: Kind, specs: dict[str, TrialSpec], rng: np.random.Generator) -> dict[str, Array]:
    """Draw how far the change on each passage is off, by trial: half of the variance is common to
    all trials, half to the seeds of an arm."""
    if not kind.passages:
        return {}
    labels = {trial: spec.arm_label for trial, spec in specs.items()}
    common = rng.normal(size=kind.passages)
    of_arm = {label: rng.normal(size=kind.passages) for label in dict.fromkeys(labels.values())}
    scale = PASSAGES_APART * 0.5**0.5
    return {trial: scale * (common + of_arm[label]) for trial, label in labels.items()}


def _changes(
    kind: Kind, arms: dict[str, TrialSpec], size: float, rng: np.random.Generator
) -> dict[str, float]:
    """Draw the change of ability by arm. It is a parabola over the rank, and one over the rate, or
    over the rate times a power of alpha."""
    place = {rank: i / (len(kind.ranks) + 1) for i, rank in enumerate((*kind.ranks, None))}
    peak, bend = rng.uniform(0, 1.2), rng.uniform(0, 0.8)
    best_rate, steep = rng.uniform(-0.7, 0.7), rng.uniform(0, 0.6)
    power = rng.uniform(0.25, 1.25) if kind.alphas else 0.0
    changes = {}
    for label, spec in arms.items():
        change = size - bend * abs(size) * (place[spec.rank] - peak) ** 2
        if kind.hardly:
            change *= _trained(spec)
        elif len(kind.lrs) > 1:
            lr = np.log10(spec.lr * (2 if spec.rank is None else 1)) + 3
            lr += power * np.log10((spec.alpha or 64.0) / 64.0)
            change -= abs(size) * steep * (lr - best_rate) ** 2
        if kind.rough:
            change += 0.3 * abs(size) * rng.normal()
        changes[label] = float(change)
    return changes


def _trained(spec: TrialSpec) -> float:
    """Return how far training at this rate goes where low rates hardly train. It is a share of the
    change of ability, and of the items that are not answered as by the base."""
    lr = spec.lr * (2 if spec.rank is None else 1)
    return lr / (lr + 1e-4)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
