"""Statistics of paired scores: exact tests, and intervals over training seeds and items.

Legend: S trained seeds, T seeds of a second trained arm, N items, C clusters, D bootstrap draws.
Scores are headline scores of items (1 right, 0 wrong, or nats per token); every comparison is of
models on the same items. Sources and formulas: docs/science.md, "Statistics".
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from rankscope.errors import BadInput
from rankscope.records import Estimate

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 0.05
"""Level of every test that a decision rests on."""
NUM_DRAWS = 2000
MOST_ENUMERATED = 12
"""Units up to which all 2^units sign flips are counted instead of drawn."""
CHUNK_CELLS = 4_000_000
"""Resampling weights held at once; 32 MB."""


def standard_error(scores: Array, clusters: Sequence[Hashable] | None = None) -> float | None:
    """Standard error of the mean of ``scores`` (N,); None where it cannot be known.

    With ``clusters`` (one label an item), items of a cluster may hang together: the squared sums of
    residuals per cluster (Liang & Zeger 1986; Miller 2024, arXiv 2411.00640, section 2.2), with the
    small-sample factor C / (C - 1).
    """
    n = len(scores)
    if clusters is None:
        return float(scores.std(ddof=1)) / sqrt(n) if n >= 2 else None
    labels = _cluster_index(clusters, n)
    num_clusters = int(labels.max()) + 1 if n else 0
    if num_clusters < 2:
        return None
    sums = np.bincount(labels, weights=scores - scores.mean())
    return sqrt(float((sums**2).sum()) * num_clusters / (num_clusters - 1)) / n


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of b gains against c losses under a fair coin (McNemar 1947)."""
    if b == c:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))


def sign_flip(parts: Array, seed: int = 0) -> float:
    """Two-sided p that the sum of ``parts`` (units,) is zero, by flipping signs (Fisher 1935).

    If the two models were alike, either sign of a unit's difference would be as likely. Exact for
    up to ``MOST_ENUMERATED`` units that differ at all; else (k + 1) / (D + 1) with D drawn flips,
    k of them with a sum at least as far from zero (Phipson & Smyth 2010).
    """
    # Equal sizes share a binomial draw; rounding joins what only summation order tells apart.
    scale = float(np.abs(parts).max())
    if scale == 0:
        return 1.0
    sizes, counts = np.unique((np.abs(parts) / scale).round(12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    units = int(counts.sum())
    found = abs(float(parts.sum())) / scale - 1e-9 * units
    if units <= MOST_ENUMERATED:
        flips = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
        return float((np.abs(flips @ np.repeat(sizes, counts)) >= found).mean())
    rng = np.random.default_rng([seed, 2])
    further, chunk = 0, max(1, CHUNK_CELLS // len(sizes))
    for start in range(0, NUM_DRAWS, chunk):
        shape = (min(chunk, NUM_DRAWS - start), len(sizes))
        sums = (2 * rng.binomial(counts, 0.5, size=shape) - counts) @ sizes
        further += int((np.abs(sums) >= found).sum())
    return (further + 1) / (NUM_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Family-wise adjusted p values in the given order (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for i, position in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def minimum_detectable_effect(
    n: int, discordance: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest paired difference seen with ``power``, a share of 1; None where n < 1.

    (z_{1 - alpha/2} + z_power) sqrt(discordance / n), ``discordance`` being the share of items on
    which the two models differ (Connor 1987, with the variance at no difference).
    """
    if n < 1:
        return None
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return z * sqrt(discordance / n)


def items_needed(effect: float, discordance: float) -> int | None:
    """Items at which a paired difference of ``effect`` is seen with power .8 at alpha .05."""
    smallest_at_one = minimum_detectable_effect(1, discordance)
    if smallest_at_one is None or effect <= 0:
        return None
    return int(np.ceil((smallest_at_one / effect) ** 2))


def non_inferior(difference: Estimate, margin: float) -> bool:
    """Whether the arm is shown to be at most ``margin`` worse: the interval lies above -margin."""
    return difference.low is not None and difference.low > -margin


def score_estimate(
    scores: Array, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """Mean of ``scores`` (S, N) with a 95 % interval over seeds and items; no test."""
    return _estimate([_Comparison(scores, None, clusters)], seed, tested=False)


def paired_estimate(
    tuned: Array,
    reference: Array,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """``tuned`` (S, N) minus ``reference``: (N,) for the base, (T, N) for another trained arm.

    Interval: percentile bootstrap that resamples seeds and, once per draw for all models alike,
    items (or whole ``clusters`` of them). Seeds and items are crossed, every seed answers the same
    items; resampling items anew within each seed would treat one item's difficulty as S independent
    facts and come out too narrow (Owen 2007). Deviations between seeds are stretched by
    sqrt(S / (S - 1)), since a resample of S seeds shows only (S - 1) / S of their variance. With
    one seed the interval speaks of that one trained model.

    p: exact McNemar for one seed of right-or-wrong items; otherwise the larger of the bootstrap's,
    which knows the spread between seeds, and that of ``sign_flip`` on item means, which guards
    small samples. Both test the mean, as the interval does. Interval and p are None where N < 2.
    """
    return _estimate([_Comparison(tuned, reference, clusters)], seed)


def mean_paired_estimate(pairs: Sequence[tuple[Array, Array]], seed: int = 0) -> Estimate:
    """Mean over tasks of tuned (S, N) minus reference (N,) or (T, N), tasks weighing the same.

    As ``paired_estimate``; the same seeds are drawn in every task, since they are the same models.
    """
    if not pairs:
        raise BadInput("mean_paired_estimate: no task given")
    return _estimate([_Comparison(tuned, reference) for tuned, reference in pairs], seed)


def negated(estimate: Estimate) -> Estimate:
    """The same difference seen from the other side."""
    return estimate.model_copy(
        update={
            "value": 0.0 if estimate.value == 0 else -estimate.value,
            "low": None if estimate.high is None else -estimate.high,
            "high": None if estimate.low is None else -estimate.low,
        }
    )


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One task's scores: tuned (S, N), against a reference (N,) or (T, N) or nothing."""

    tuned: Array
    reference: Array | None
    clusters: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        others = self.tuned if self.reference is None else self.reference
        if self.tuned.ndim != 2 or others.shape[-1] != self.tuned.shape[1] or not self.tuned.size:
            raise BadInput(
                f"paired scores: found shapes {self.tuned.shape} and {others.shape}, expected "
                "(seeds, items) and (items,) or (seeds, items) on the same items, none empty"
            )

    @property
    def rows(self) -> Array:
        """(S + T, N)."""
        return self.tuned if self.reference is None else np.vstack([self.tuned, self.reference])

    @property
    def item_means(self) -> Array:
        """Difference of every item, mean over seeds: (N,)."""
        return self.combine_groups(self.rows.T)

    @property
    def parts(self) -> Array:
        """What every item, or cluster of them, adds to the mean difference."""
        shares: Array = self.item_means / self.tuned.shape[1]
        if self.clusters is None:
            return shares
        sums = np.bincount(_cluster_index(self.clusters, len(shares)), weights=shares)
        return sums.astype(np.float64)

    @property
    def is_one_pair(self) -> bool:
        """Two models on right-or-wrong items that stand by themselves."""
        return self.is_right_or_wrong and len(self.rows) == 2 and self.clusters is None

    @property
    def seeds(self) -> int:
        """Seeds of the arm that has fewer; a base (N,) has none to count."""
        if self.reference is None or self.reference.ndim == 1:
            return len(self.tuned)
        return min(len(self.tuned), len(self.reference))

    @property
    def is_right_or_wrong(self) -> bool:
        return bool(np.isin(self.rows, (0.0, 1.0)).all())

    def combine_groups(self, values: Array, weights: tuple[Array, Array] | None = None) -> Array:
        """Tuned minus reference of ``values`` (D, S + T), each averaged by its seed weights."""
        split = len(self.tuned)
        groups = [values[:, :split], values[:, split:]]
        means = []
        for i, group in enumerate(groups):
            if group.shape[1] == 0:
                means.append(np.zeros(len(values)))
                continue
            mean = group.mean(axis=1)
            count = group.shape[1]
            if weights is not None and count > 1:
                stretched = (group - mean[:, None]) * sqrt(count / (count - 1))
                mean = mean + (weights[i] * stretched).sum(axis=1)
            means.append(mean)
        difference: Array = means[0] - means[1]
        return difference


def _estimate(comparisons: list[_Comparison], seed: int, tested: bool = True) -> Estimate:
    value = float(np.mean([c.item_means.mean() for c in comparisons]))
    n = sum(c.tuned.shape[1] for c in comparisons)
    seeds = min(c.seeds for c in comparisons)
    if any(c.tuned.shape[1] < 2 for c in comparisons):
        return Estimate(value=value, low=None, high=None, n=n, seeds=seeds)
    per_task = [_bootstrap(c, [seed, i]) for i, c in enumerate(comparisons)]
    draws: Array = np.mean(per_task, axis=0)
    low, high = _interval(draws, value, comparisons)
    p = _p_value(draws, comparisons, seed) if tested else None
    return Estimate(value=value, low=low, high=high, p=p, n=n, seeds=seeds)


def _bootstrap(comparison: _Comparison, stream: list[int]) -> Array:
    """D resampled values of one comparison."""
    rows = comparison.rows
    n = rows.shape[1]
    if comparison.clusters is None:
        columns = np.vstack([rows, np.ones(n)])
    else:
        labels = _cluster_index(comparison.clusters, n)
        indicator = np.vstack([rows, np.ones(n)])
        columns = np.stack([np.bincount(labels, weights=row) for row in indicator])
    # Units with equal columns are exchangeable: resampling their count is resampling them, and
    # right-or-wrong items of a few models have few distinct columns however many items there are.
    kinds, counts = np.unique(columns, axis=1, return_counts=True)
    rng = np.random.default_rng([*stream, 1])
    means = np.empty((NUM_DRAWS, len(rows)))
    chunk = max(1, CHUNK_CELLS // int(counts.sum()))
    for start in range(0, NUM_DRAWS, chunk):
        size = min(chunk, NUM_DRAWS - start)
        totals = _resampled_counts(counts, size, rng) @ kinds.T
        means[start : start + size] = totals[:, :-1] / totals[:, -1:]
    # Not part of the task's stream: the same seeds are drawn for every task of an arm.
    seed_rng = np.random.default_rng([stream[0], 0])
    tuned = _seed_weights(len(comparison.tuned), seed_rng)
    other = _seed_weights(max(1, len(rows) - len(comparison.tuned)), seed_rng)
    return comparison.combine_groups(means, (tuned, other))


def _resampled_counts(
    counts: npt.NDArray[np.intp], size: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How often each kind of unit is drawn, (size, kinds); units number ``counts.sum()``."""
    units, kinds = int(counts.sum()), len(counts)
    if kinds * 8 < units:
        return rng.multinomial(units, counts / units, size=size)
    # The same law; counting drawn units is quicker than many binomials where kinds are many.
    kind_of_unit = np.repeat(np.arange(kinds), counts)
    drawn = kind_of_unit[rng.integers(units, size=(size, units))]
    drawn += kinds * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * kinds).reshape(size, kinds)


def _seed_weights(seeds: int, rng: np.random.Generator) -> Array:
    """(D, S) shares of a resample of S seeds."""
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=NUM_DRAWS) / seeds


def _interval(
    draws: Array, value: float, comparisons: list[_Comparison]
) -> tuple[float | None, float | None]:
    tail = (1 - CONFIDENCE) / 2
    lowest = 0.0 if all(c.reference is None for c in comparisons) else -1.0
    if np.ptp(draws) > 1e-12:
        low, high = (float(q) for q in np.quantile(draws, [tail, 1 - tail]))
        if all(c.is_right_or_wrong for c in comparisons):
            # Stretched seed deviations can leave the range that accuracies have.
            return max(lowest, low), min(1.0, high)
        return low, high
    # Every unit gave the same: the bootstrap sees no spread, yet items not drawn may differ. For
    # right-or-wrong items the exact bound on what N equal answers leave open is 1 - tail^(1/N).
    if not all(c.is_right_or_wrong for c in comparisons):
        return None, None
    smallest = min(c.tuned.shape[1] for c in comparisons)
    half_width = 1 - tail ** (1 / smallest)
    return max(lowest, value - half_width), min(1.0, value + half_width)


def _p_value(draws: Array, comparisons: list[_Comparison], seed: int) -> float:
    only = comparisons[0] if len(comparisons) == 1 else None
    if only is not None and only.is_one_pair:
        difference = only.item_means
        return mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    bootstrap = min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))
    return max(bootstrap, sign_flip(np.concatenate([c.parts for c in comparisons]), seed))


def _cluster_index(clusters: Sequence[Hashable], n: int) -> npt.NDArray[np.intp]:
    """Cluster labels as 0 .. C - 1, (N,)."""
    if len(clusters) != n:
        raise BadInput(f"clusters: found {len(clusters)} labels for {n} items, expected one each")
    position: dict[Hashable, int] = {}
    return np.array(
        [position.setdefault(label, len(position)) for label in clusters], dtype=np.intp
    )
