"""What is forgotten more, or less, than a scaled update forgets at the same in-domain score.

A scaling curve gives forgetting at a gain by linear interpolation between two strengths, so the
plain arm's scores at that gain are the same mixture of its scores at both, item by item, and the
difference has an error from seeds and from items as any other (``statistics.py``). The gain itself
is measured on items: where it is off by d, the curve is read d beside, which moves the difference
by the curve's slope times d. The in-domain items enter with that weight (delta method).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import align_scores
from rankscope.records import SeedMean, StudyRecords

GainAndForgetting = tuple[float, float]
"""(gain, forgetting) of one trained trial at one strength."""

FEWEST_SEEDS = 3
"""Below it the spread between seeds is not known well enough for an interval or a test."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Where a curve of spots has a gain: ``share`` of the way from one spot to another."""

    first: int
    second: int
    share: float
    slope: float
    """Forgetting per gain there; 0 at an end of the curve, where nothing is interpolated."""
    forgetting: float


@dataclass(frozen=True, slots=True)
class Match:
    """One seed: a model, and the two models that the plain arm's scores are mixed from."""

    model: str
    first: str
    second: str
    passage: Passage
    difference: float
    """Forgetting of the model minus that of the mixture."""


def passage_at(curve: Sequence[GainAndForgetting], gain: float) -> Passage:
    """Where a piecewise linear curve has ``gain`` and forgets least.

    Beyond its largest gain, there; below its smallest likewise.
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
) -> SeedMean:
    """Mean over seeds and retention tasks on the test split.

    Interval and p are None below ``FEWEST_SEEDS``, and where neither seeds nor items vary.
    """
    value = float(np.mean([m.difference for m in matches]))
    unknown = SeedMean(value=value, low=None, high=None, p=None, seeds=len(matches))
    parts = [_part(study, name, matches) for name in retained]
    own = _part(study, task, matches, [m.passage.slope for m in matches])
    found = [p for p in (*parts, own) if p is not None]
    if len(matches) < FEWEST_SEEDS or len(found) <= len(retained):
        return unknown
    made = weighted_estimate(found, [*(1 / len(retained) for _ in retained), 1.0])
    if made.low is None:
        return unknown
    return SeedMean(value=made.value, low=made.low, high=made.high, p=made.p, seeds=len(matches))


def _part(
    study: StudyRecords, task: str, matches: Sequence[Match], slopes: Sequence[float] | None = None
) -> Comparison | None:
    """Mixture minus model, (seeds, items); times the slopes, and of mean zero, where given."""
    names = [m.model for m in matches] + [m.first for m in matches] + [m.second for m in matches]
    scores = [s for name in names if (s := study.items.get((name, task, "test"))) is not None]
    aligned = align_scores(scores, None, trained=False) if len(scores) == len(names) else None
    if aligned is None:
        return None
    model, first, second = np.split(aligned.tuned, 3)
    share = _column([m.passage.share for m in matches])
    rows = (1 - share) * first + share * second - model
    if slopes is not None:
        # The share was chosen to make this mean zero; what is left is its error.
        rows = _column(slopes) * (rows - rows.mean(axis=1, keepdims=True))
    return Comparison(rows, np.zeros(rows.shape[1]), aligned.clusters)


def _column(values: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]
