"""Forgetting compared with that of a scaled update at the same in-domain score.

The scaling curve of the plain arm gives its forgetting at a gain by linear interpolation between
two strengths. Its scores at that gain are the same mixture of its scores at both strengths, item by
item, so the difference gets an interval over seeds and items like any other (``statistics/``). The
gain is itself measured on items: an error d in it moves the difference by the slope of the curve
times d, so the in-domain items enter with that weight (delta method)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import align_scores
from rankscope.records import Estimate, StudyRecords

GainAndForgetting = tuple[float, float]
"""(gain, forgetting) of one trained trial at one strength."""

FEWEST_SEEDS = 3
"""With fewer, the spread between seeds is too uncertain for an interval or a test."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Where a curve reaches a gain: ``share`` of the way from one of its points to another."""

    first: int
    second: int
    share: float
    slope: float
    """Forgetting per gain there; 0 at the ends of the curve."""
    forgetting: float


@dataclass(frozen=True, slots=True)
class Match:
    """One seed: the model, and the two models whose scores are mixed for the baseline."""

    model: str
    first: str
    second: str
    passage: Passage
    difference: float
    """Forgetting of the model minus that of the mixture."""


def passage_at(curve: Sequence[GainAndForgetting], gain: float) -> Passage:
    """Where a piecewise linear curve reaches ``gain`` with the least forgetting.

    A gain outside the curve is moved to its nearest end.
    """
    gains = [found for found, _ in curve]
    gain = min(max(gain, min(gains)), max(gains))
    reached = [Passage(i, i, 0.0, 0.0, f) for i, (g, f) in enumerate(curve) if g == gain]
    for i, ((g0, f0), (g1, f1)) in enumerate(pairwise(curve)):
        if min(g0, g1) <= gain <= max(g0, g1) and g0 != g1:
            share, slope = (gain - g0) / (g1 - g0), (f1 - f0) / (g1 - g0)
            reached.append(Passage(i, i + 1, share, slope, f0 + (f1 - f0) * share))
    return min(reached, key=lambda p: p.forgetting)


def difference_over_seeds(
    study: StudyRecords, task: str, retained: Sequence[str], matches: Sequence[Match]
) -> Estimate:
    """Mean difference over seeds and retention tasks on the test split.

    Interval and p are None with fewer than ``FEWEST_SEEDS`` seeds, or if neither seeds nor items
    vary.
    """
    parts = [_part(study, name, matches) for name in retained]
    parts.append(_part(study, task, matches, [m.passage.slope for m in matches]))
    known = [part for part in parts if part is not None]
    if len(matches) >= FEWEST_SEEDS and len(known) == len(parts):
        estimate = weighted_estimate(known, [*(1 / len(retained) for _ in retained), 1.0])
        if estimate.low is not None:
            return estimate
    return Estimate(
        value=float(np.mean([m.difference for m in matches])),
        low=None,
        high=None,
        n=sum(part.tuned.shape[1] for part in known),
        seeds=len(matches),
    )


def _part(
    study: StudyRecords, task: str, matches: Sequence[Match], slopes: Sequence[float] | None = None
) -> Comparison | None:
    """Mixture minus model, (seeds, items). With ``slopes``: times the slope, centred per seed."""
    names = [m.model for m in matches] + [m.first for m in matches] + [m.second for m in matches]
    scores = [s for name in names if (s := study.items.get((name, task, "test"))) is not None]
    aligned = align_scores(scores, None, trained=False) if len(scores) == len(names) else None
    if aligned is None:
        return None
    model, first, second = np.split(aligned.tuned, 3)
    share = _column([m.passage.share for m in matches])
    rows = (1 - share) * first + share * second - model
    if slopes is not None:
        # ``share`` was chosen to make this mean zero; what remains is its error.
        rows = _column(slopes) * (rows - rows.mean(axis=1, keepdims=True))
    return Comparison(rows, np.zeros(rows.shape[1]), aligned.clusters)


def _column(values: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]
