"""Studies drawn from random truths that the advice knows nothing of, by kind.

Items have a difficulty and a discrimination each (2PL); seeds are apart by Student's t of 3;
ability gains and losses over the rank follow random parabolas. The truth of an arm is the mean over
seeds and items that were not drawn. A model that hardly trained (low rates, few rows) answers as
the base does, item by item.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.arms import trials_by_arm
from rankscope.advise.retention import net_scale
from rankscope.records import BASE, StudyRecords, TrialSpec

Array = np.ndarray
SEEDS_OF_TRUTH = stats.t(3).ppf((np.arange(80) + 0.5) / 80)[:, None]
ITEMS_OF_TRUTH = 4000


@dataclass(frozen=True)
class Kind:
    """What studies of one kind are drawn from."""

    name: str
    seeds: tuple[int, int] = (1, 5)  # Fewest and most
    items: tuple[int, int] = (160, 1200)  # Of both splits together
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    lrs: tuple[float, ...] = (1e-3,)
    alphas: tuple[float, ...] = ()  # Each with as many of the rates, in turn; else 2 r
    tasks: tuple[str, ...] = ("med",)
    gain: tuple[float, float] = (0.4, 0.5)  # Mean and standard deviation of the largest, in logits
    loss: float = 0.25  # Standard deviation of the largest
    eaten: bool = False  # The loss is about as large as the gain
    unequal: bool = False  # Seeds of some arms are further apart than those of others
    rough: bool = False  # Ranks are not smooth
    nats: bool = False
    shares: bool = False  # Nats that are weighed as shares, as they are by default
    failed: bool = False  # One seed of one arm failed
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
    Kind("shares", nats=True, shares=True),
    Kind("rates that hardly train", lrs=(1e-5, 1e-4, 1e-3), hardly=True),
    Kind("the same, in shares", lrs=(1e-5, 1e-4, 1e-3), hardly=True, nats=True, shares=True),
    Kind(
        "ranks, alphas and rates",
        seeds=(1, 2),
        ranks=(8, 32, 128),
        lrs=(1e-3, 2e-3, 4e-3, 4e-4, 8e-4, 1.6e-3, 1.6e-4, 3.2e-4, 6.4e-4),
        alphas=(16, 64, 256),
        nats=True,
        shares=True,
    ),
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
        num_items=items // 2,
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
    if not kind.nats or kind.shares:
        return frame
    # As text: every task in nats, so gain and forgetting have one unit, and are not shares.
    objective = frame.config.objective.model_copy(update=_own_unit())
    config = frame.config.model_copy(update={"objective": objective})
    return replace(frame, config=config)


def _own_unit() -> dict[str, str]:
    """Weigh nats against nats: the truth of a draw is a difference of nats."""
    from rankscope.config.objective import ObjectiveConfig

    return {"scale": "nats"} if "scale" in ObjectiveConfig.model_fields else {}


@dataclass
class RandomTruth:
    """A study, and the true net gain of its arms by training task and label."""

    study: StudyRecords
    net: dict[str, dict[str, float]] = field(default_factory=dict)


def draw(kind: Kind, seed: int) -> RandomTruth:
    """A study of one kind; equal arguments give equal records."""
    rng = np.random.default_rng([seed, KINDS.index(kind), 4])
    seeds, items = (int(rng.integers(low, high + 1)) for low, high in (kind.seeds, kind.items))
    frame = _frame(kind, seeds, items // 2 * 2)
    drawn = RandomTruth(frame)
    specs = {trial.spec.trial_id: trial.spec for trial in frame.trials}
    found = dict(frame.items)
    mean = _mean_log_probability if kind.nats else _accuracy
    bases = {name: rng.normal(0, 0.5) for name in (*kind.tasks, "general")}
    tests = {name: (rng.normal(0, 1.2, ITEMS_OF_TRUTH), rng.lognormal(0, 0.3, ITEMS_OF_TRUTH))
             for name in bases}  # fmt: skip
    abilities: dict[tuple[str, str], float] = {}
    changed: dict[str, dict[str, dict[str, float]]] = {}
    for task in kind.tasks:
        spread = rng.uniform(0.02, 0.15)
        gain = rng.normal(*kind.gain)
        loss = abs(rng.normal(0, kind.loss))
        if kind.eaten:
            gain = abs(gain)
            loss = gain * rng.uniform(0.7, 1.3)
        of_task = [spec for spec in specs.values() if spec.task == task]
        arms = {spec.arm_label: spec for spec in of_task}
        changes = {
            task: _changes(kind, arms, gain, rng),
            "general": {k: -v for k, v in _changes(kind, arms, loss, rng).items()},
        }
        own = {k: spread * (rng.lognormal(0, 0.7) if kind.unequal else 1.0) for k in arms}
        if kind.hardly:
            own = {label: spread * _trained(spec) for label, spec in arms.items()}
        for spec in of_task:
            for name, change in changes.items():
                deviation = own[spec.arm_label] * rng.standard_t(3)
                abilities[spec.trial_id, name] = bases[name] + change[spec.arm_label] + deviation
        drawn.net[task], changed[task] = {}, {}
        for label in arms:
            kept = {
                name: mean(bases[name] + change[label] + own[label] * SEEDS_OF_TRUTH, *tests[name])
                - mean(np.array([[bases[name]]]), *tests[name])
                for name, change in changes.items()
            }
            # A trial that failed counts as no gain.
            ended = [t.status == "done" for t in frame.trials if t.spec.arm_label == label]
            drawn.net[task][label] = sum(kept.values()) * float(np.mean(ended))
            changed[task][label] = kept
    for name in bases:
        for split in ("validation", "test"):
            n = len(found[BASE, name, split].scores)
            difficulty, slope = rng.normal(0, 1.2, n), rng.lognormal(0, 0.3, n)
            shared, luck_of_base = rng.uniform(size=n), np.zeros(n)
            for model in (BASE, *(t.spec.trial_id for t in frame.trials)):
                ability = bases[name] if model == BASE else abilities.get((model, name))
                if ability is None or (model, name, split) not in found:
                    continue
                if kind.nats:
                    luck = 0.15 * rng.standard_t(4, n)
                else:
                    luck = np.where(rng.uniform(size=n) < 0.7, shared, rng.uniform(size=n))
                if model == BASE:
                    luck_of_base = luck
                elif kind.hardly:
                    is_own = rng.uniform(size=n) < _trained(specs[model])
                    luck = np.where(is_own, luck, luck_of_base)
                if kind.nats:
                    scores = luck - np.log1p(np.exp(-slope * (ability - difficulty)))
                else:
                    scores = (luck < _sigmoid(slope * (ability - difficulty))).astype(float)
                key = (model, name, split)
                found[key] = replace(found[key], scores=scores)
    drawn.study = replace(frame, items=found)
    for task in kind.tasks if kind.shares else ():
        # The units of a share are measured: what is judged is the posterior in these units.
        arms = trials_by_arm(t for t in drawn.study.trials if t.spec.task == task)
        parts = net_scale(drawn.study, task, list(arms.values())).parts
        drawn.net[task] = {
            label: sum(part.weight * kept[part.task] for part in parts)
            for label, kept in changed[task].items()
        }
    return drawn


def _changes(
    kind: Kind, arms: dict[str, TrialSpec], size: float, rng: np.random.Generator
) -> dict[str, float]:
    """Change of the ability by arm: a parabola over the rank, and one over the rate, or over the
    rate times a power of alpha."""
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
    """Share of the way that training at this rate goes, of kinds in which low rates hardly train:
    of the change of ability, and of the items that are not answered as by the base."""
    lr = spec.lr * (2 if spec.rank is None else 1)
    return lr / (lr + 1e-4)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _accuracy(ability: Array, difficulty: Array, slope: Array) -> float:
    return float(_sigmoid(slope * (ability - difficulty)).mean())


def _mean_log_probability(ability: Array, difficulty: Array, slope: Array) -> float:
    return float(-np.log1p(np.exp(-slope * (ability - difficulty))).mean())
