"""Estimates from paired scores: intervals over training seeds and items.

Shapes: S trained seeds, T seeds of a second trained arm, N items, C clusters, D bootstrap draws.
Scores are per-item primary scores (1 right, 0 wrong, or nats per token), always of models on the
same items. Sources and formulas: docs/methods.md, "Statistics".

All seeds answer the same items, so seeds and items are crossed, and their parts of the variance are
separated as in a two-way layout. The part of items comes from a paired bootstrap of the item means
over seeds. The part of seeds is the variance of their means beyond the noise of N answers, with
Student's t of S - 1. The two half-widths add in squares (Zou & Donner 2008). A percentile bootstrap
over seeds would be too narrow with three seeds (evidence/cards.md, intervals).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from rankscope.advise.statistics.resampling import ScoreArray, quantiles, resampled_means
from rankscope.errors import UserError
from rankscope.records import Estimate

INTERVAL_LEVEL = 0.95
TINY = 1e-12
TAKEN_OFF_TWO = 0.6
"""Share of the answers' noise subtracted from the variance of two seeds, chosen by simulation.

If all noise were subtracted, two seeds that are close by chance would count as equal too often, and
their interval would cover the truth in only two of three studies. Subtracting less would cover
better if seeds differ, but widen intervals by half if they do not (evidence/cards.md, intervals).
"""


def unpaired_difference(first: Estimate, second: Estimate) -> Estimate:
    """Return ``first`` minus ``second`` for two different samples of items.

    MOVER makes the interval from the two separate intervals (Zou & Donner 2008): the squared
    distances that make the difference smaller add up to the squared distance of its lower end. It
    is conservative if the samples are positively correlated. ``n`` and ``seeds`` are those of the
    smaller side.
    """
    value = first.value - second.value
    n, seeds = min(first.n, second.n), min(first.seeds, second.seeds)
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None for end in ends):
        return Estimate(value=value, low=None, high=None, n=n, seeds=seeds)
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    return Estimate(
        value=value,
        low=value - hypot(first.value - low, other_high - second.value),
        high=value + hypot(high - first.value, second.value - other_low),
        n=n,
        seeds=seeds,
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task's scores: tuned (S, N) against a reference (N,), (T, N) or None."""

    tuned: ScoreArray
    reference: ScoreArray | None
    clusters: npt.NDArray[Any] | None = None
    """Label of each item. Items with the same label may depend on each other, and are resampled
    together (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640, section 2.2)."""

    def __post_init__(self) -> None:
        others = self.tuned if self.reference is None else self.reference
        if self.tuned.ndim != 2 or others.shape[-1] != self.tuned.shape[1] or not self.tuned.size:
            raise UserError(
                "paired scores",
                f"shapes {self.tuned.shape} and {others.shape}",
                "(seeds, items) and (items,) or (seeds, items) on the same items, none empty",
            )

    @property
    def arms(self) -> tuple[ScoreArray, ...]:
        """Scores of the trained arms: (S, N), and (T, N) if the reference is a trained arm."""
        trained = self.reference is not None and self.reference.ndim == 2
        return (self.tuned, self.reference) if trained else (self.tuned,)  # type: ignore[return-value]

    @property
    def item_means(self) -> ScoreArray:
        """Difference per item, mean over seeds, (N,)."""
        means: ScoreArray = self.tuned.mean(axis=0)
        if self.reference is None:
            return means
        others = np.atleast_2d(self.reference)
        change = means - others.mean(axis=0)
        # The mean of equal floats may differ from them in the last digits; that counts as zero.
        sizes = np.maximum(np.abs(self.tuned).max(axis=0), np.abs(others).max(axis=0))
        return np.where(np.abs(change) <= TINY * sizes, 0.0, change)

    @property
    def is_right_or_wrong(self) -> bool:
        rows = [self.tuned] if self.reference is None else [self.tuned, self.reference]
        return all(bool(((r == 0) | (r == 1)).all()) for r in rows)


@dataclass(frozen=True, slots=True)
class _Share:
    """One part of the variance of an estimate, with its degrees of freedom."""

    variance: float
    freedom: float

    def half_width(self, alpha: float) -> float:
        return -float(special.stdtrit(self.freedom, alpha / 2)) * sqrt(self.variance)

    def at_once(self, looks: int) -> "_Share":
        """Widen a share for ``looks`` simultaneous intervals, by its half-width at 95 %."""
        alpha, one = 1 - INTERVAL_LEVEL, _Share(1.0, self.freedom)
        ratio = one.half_width(alpha / looks) / one.half_width(alpha)
        return _Share(self.variance * ratio**2, self.freedom)


@dataclass(frozen=True, slots=True)
class _Weighed:
    """One task of an estimate, with its weight and its resampling units."""

    comparison: Comparison
    weight: float
    mean: float  # Mean difference over items
    labels: npt.NDArray[np.intp] | None
    """Cluster of every item, 0 .. C - 1; None if items are independent."""
    sums: ScoreArray  # Differences summed per item or cluster, (C,)
    sizes: ScoreArray  # Items per unit, (C,)

    @classmethod
    def of(cls, comparison: Comparison, weight: float) -> "_Weighed":
        means, clusters = comparison.item_means, comparison.clusters
        labels = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
        sums, sizes = _units(means, labels)
        return cls(comparison, weight, float(means.mean()), labels, sums, sizes)

    @property
    def n(self) -> int:
        return int(self.comparison.tuned.shape[1])

    @property
    def item_variance(self) -> float:
        return self.weight**2 * _variance_of_mean(self.sums - self.sizes * self.mean, self.n)

    def answer_noise(self, rows: ScoreArray, by_seed: ScoreArray) -> float:
        """Return the weighted variance of the seeds' means, (S,), due to the noise of their
        answers.

        ``rows`` are the scores of one trained arm, (S, N).
        """
        residuals = rows - rows.mean(axis=0) - by_seed[:, None] + by_seed.mean()
        if self.labels is not None:
            residuals = np.stack([_units(row, self.labels)[0] for row in residuals])
        return self.weight**2 * _variance_of_mean(residuals, self.n) / (len(rows) - 1)


def weighted_estimate(
    comparisons: Sequence[Comparison],
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Sum weight times difference over tasks; the default weights give the mean.

    Row s of every task must be the same trained model. Items with the same cluster label are
    resampled together. With one seed the interval refers to that trained model. The interval is
    None if N < 2. Raises UserError without tasks, or if their numbers of seeds differ.
    """
    if not comparisons:
        raise UserError("weighted_estimate", "no task", "one or more")
    if len({tuple(len(a) for a in c.arms) for c in comparisons}) > 1:
        raise UserError("weighted_estimate", "tasks with other numbers of seeds", "equal numbers")
    weighing = list(weights or [1 / len(comparisons)] * len(comparisons))
    tasks = [_Weighed.of(c, w) for c, w in zip(comparisons, weighing, strict=True)]
    value = sum(t.weight * t.mean for t in tasks)
    n = sum(t.n for t in tasks)
    seeds = min(len(a) for a in comparisons[0].arms)
    if any(len(t.sums) < 2 for t in tasks):
        return Estimate(value=value, low=None, high=None, n=n, seeds=seeds)
    items, between = _item_share(tasks), _seed_shares(tasks)
    low, high = _interval(tasks, items, between, value)
    unknown = items.variance == 0 and low is None
    seed_error = sqrt(sum(s.variance for s in between)) if seeds > 1 else None
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=n,
        seeds=seeds,
        item_error=None if unknown else sqrt(items.variance),
        seed_error=None if unknown else seed_error,
    )


def simultaneous_estimates(groups: Sequence[Comparison]) -> list[Estimate]:
    """Estimate the change of each of G groups of items, with intervals that hold for all at once.

    Each has the level 1 - 0.05 / G (Bonferroni), so it also holds for a group picked after looking
    at all of them. The variance between seeds is pooled over the groups, with G (S - 1) degrees of
    freedom: the few seeds of one group do not show how far they can stray. Right-or-wrong items get
    one more on each side [Agresti 2005], because those of a small group may all agree by chance.
    Values are those of ``weighted_estimate``.
    """
    wide = [_Weighed.of(_one_more_each_way(group), 1.0) for group in groups]
    shares = [share for group in wide for share in _seed_shares([group])]
    pooled = sum(share.variance for share in shares) / max(1, len(shares))
    seeds = _Share(pooled, sum(share.freedom for share in shares))
    between = [seeds.at_once(len(groups))] if pooled else []
    found = []
    for group, own in zip(groups, wide, strict=True):
        low, high = _interval([own], _item_share([own]).at_once(len(groups)), between, own.mean)
        found.append(weighted_estimate([group]).model_copy(update={"low": low, "high": high}))
    return found


def _one_more_each_way(group: Comparison) -> Comparison:
    """Add an item that only the tuned model gets right, and one that only the reference does."""
    if group.reference is None or not group.is_right_or_wrong:
        return group
    more = np.tile([1.0, 0.0], (len(group.tuned), 1))
    return Comparison(np.hstack([group.tuned, more]), np.append(group.reference, [0.0, 1.0]))


def _units(
    values: ScoreArray, labels: npt.NDArray[np.intp] | None
) -> tuple[ScoreArray, ScoreArray]:
    """Return sums and sizes of the resampling units (items or clusters), (C,) each."""
    if labels is None:
        return values, np.ones(len(values))
    sums = np.bincount(labels, weights=values)
    return sums.astype(np.float64), np.bincount(labels).astype(np.float64)


def _variance_of_mean(residual_sums: ScoreArray, n: int) -> float:
    """Return the variance of a mean of n items from the residual sums (..., C) of its C units.

    It is summed over rows, and 0 for a single unit.
    """
    c = int(residual_sums.shape[-1])
    return float((residual_sums**2).sum()) * c / max(1, c - 1) / n**2


def _item_share(tasks: Sequence[_Weighed]) -> _Share:
    """Return the variance due to items; its degrees of freedom follow Satterthwaite (1946)."""
    variances = [t.item_variance for t in tasks]
    total = sum(variances)
    if total < TINY**2:
        return _Share(0.0, 1.0)
    parts = zip(variances, tasks, strict=True)
    return _Share(total, total**2 / sum(v**2 / (len(t.sums) - 1) for v, t in parts))


def _seed_shares(tasks: Sequence[_Weighed]) -> list[_Share]:
    """Return the variance due to seeds, one share per trained arm with two or more.

    The means of the seeds vary between seeds and by the noise of their answers. The noise is
    already part of the item share, so it is subtracted.
    """
    shares = []
    for position, arm in enumerate(tasks[0].comparison.arms):
        seeds = len(arm)
        if seeds < 2:
            continue
        means, noise = np.zeros(seeds), 0.0
        for task in tasks:
            rows = task.comparison.arms[position]
            by_seed = rows.mean(axis=1)
            means += task.weight * by_seed
            noise += task.answer_noise(rows, by_seed)
        if seeds == 2:
            noise *= TAKEN_OFF_TWO
        variance = max(0.0, float(means.var(ddof=1)) - noise) / seeds
        shares.append(_Share(variance if variance > TINY**2 else 0.0, seeds - 1))
    return shares


def _interval(
    tasks: Sequence[_Weighed], items: _Share, between: list[_Share], value: float
) -> tuple[float | None, float | None]:
    alpha = 1 - INTERVAL_LEVEL
    accuracy = all(t.comparison.is_right_or_wrong for t in tasks)
    widest = sum(abs(t.weight) for t in tasks)
    if items.variance > 0:
        draws = np.zeros(1)
        for i, task in enumerate(tasks):
            draws = draws + task.weight * resampled_means(task.sums, task.sizes, i)
        # A bootstrap of few units has too little spread and normal quantiles: stretch it.
        spread = max(float(draws.std()), TINY)
        stretch = items.half_width(alpha) / float(special.ndtri(1 - alpha / 2)) / spread
        ends = quantiles(draws, (alpha / 2, 1 - alpha / 2))
        below, above = (d * stretch for d in (value - ends[0], ends[1] - value))
    elif accuracy:
        # All units are equal, so the bootstrap has no spread, yet unseen items may differ. The
        # exact bound for N equal answers is 1 - (alpha / 2)^(1/N).
        fewest = min(len(t.sums) for t in tasks)
        below = above = widest * (1 - (alpha / 2) ** (1 / fewest))
    else:
        return None, None
    squares = sum(s.half_width(alpha) ** 2 for s in between)
    low, high = value - sqrt(below**2 + squares), value + sqrt(above**2 + squares)
    if not accuracy:
        return low, high
    # Accuracies and their differences have a bounded range.
    lowest = 0.0 if all(t.comparison.reference is None for t in tasks) else -widest
    return max(lowest, low), min(widest, high)
