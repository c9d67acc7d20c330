"""Draws of the net gains of arms: the posteriors of all tasks, weighed and added draw by draw.

Shapes: P tasks, A arms, D draws. Every task has its own posterior. If seeds show that a lucky one
gains more and forgets more, or less, the draws of tasks share that luck.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankscope.advise.evidence import Measured, seed_correlation
from rankscope.advise.posterior import POSTERIOR_DRAWS, Array, Posterior, flat_posterior, posterior


@dataclass(frozen=True)
class NetGains:
    """Draws of the true net gains of some arms, and the probabilities that follow.

    The last columns may be arms that were never trained. They may be the best, but nobody can use
    them, so no result is about them.
    """

    draws: Array  # (D, A)
    on_items: Array  # Net gains of many seeds on the items that were scored, (D, A)
    seed_variance: Array  # Variance of one more seed's net gain on these items, (A,)
    item_covariance: Array  # Covariance of errors due to the choice of items, (A, A)
    margin: float
    num_untried: int = 0

    @property
    def num_tried(self) -> int:
        return len(self.seed_variance) - self.num_untried

    @cached_property
    def best(self) -> Array:
        """Net gain of the best of all arms and the base in each draw, (D,)."""
        best: Array = self.draws.max(axis=1, initial=0.0)
        return best

    @cached_property
    def _lost(self) -> Array:
        """Net gain lost against the best in each draw, (D, 1 + A): by the base, then by tried
        arms."""
        net = np.column_stack([np.zeros(len(self.draws)), self.draws[:, : self.num_tried]])
        lost: Array = self.best[:, None] - net
        return lost

    @cached_property
    def regret(self) -> Array:
        """Expected net gain lost against the best of all arms and the base, (1 + A,)."""
        mean: Array = self._lost.mean(axis=0)
        return mean

    @cached_property
    def p_within_margin(self) -> Array:
        """Probability of losing at most the margin, (1 + A,)."""
        p: Array = (self._lost <= self.margin).mean(axis=0)
        return p

    @cached_property
    def p_best(self) -> Array:
        """Probability of being the best, (1 + A,)."""
        first = self._lost.argmin(axis=1)[self._lost.min(axis=1) <= 0]
        p: Array = np.bincount(first, minlength=self._lost.shape[1]) / len(self._lost)
        return p

    def of(self, columns: Sequence[int]) -> "NetGains":
        """Return the draws of some of the arms."""
        kept = np.array(columns, dtype=np.intp)
        return NetGains(
            self.draws[:, kept],
            self.on_items[:, kept],
            self.seed_variance[kept],
            self.item_covariance[np.ix_(kept, kept)],
            self.margin,
            int((kept >= self.num_tried).sum()),
        )

    def changed(self, shares: Array, costs: Array) -> "NetGains":
        """Return the draws times ``shares`` (A,), minus ``costs`` (A,)."""
        return NetGains(
            self.draws * shares - costs,
            self.on_items * shares - costs,
            self.seed_variance * shares**2,
            self.item_covariance * np.outer(shares, shares),
            self.margin,
            self.num_untried,
        )


def draw_changes(parts: Sequence[Measured]) -> tuple[list[Posterior], str | None]:
    """Draw the posterior of every task.

    If it cannot be computed, the flat prior takes its place, and the reason is returned, too.
    """
    found, failure = list[Posterior](), None
    arms = 1 + max(place for part in parts for place in part.places)
    normal = np.random.default_rng(2).standard_normal((len(parts), arms, POSTERIOR_DRAWS))
    root = np.linalg.cholesky(seed_correlation(parts))
    for stream, (part, row) in enumerate(zip(parts, root, strict=True)):
        luck = np.tensordot(row, normal, 1)[list(part.places)]
        try:
            found.append(posterior(part.changes, luck, stream))
        except (FloatingPointError, np.linalg.LinAlgError) as error:
            found.append(flat_posterior(part.changes, luck, stream))
            failure = str(error)
    return found, failure


def net_gains(
    parts: Sequence[Measured], found: Sequence[Posterior], margin: float
) -> tuple[NetGains, tuple[int, ...]]:
    """Return the weighted sum of the changes, for arms that have them all, and these arms'
    places."""
    places = sorted(set.intersection(*(set(part.places) for part in parts)))
    draws, on_items, covariance = np.zeros(()), np.zeros(()), np.zeros(())
    spreads = list[Array]()
    for part, of_part in zip(parts, found, strict=True):
        columns, weight = [part.places.index(place) for place in places], part.part.weight
        draws = draws + weight * of_part.draws[:, columns]
        on_items = on_items + weight * of_part.on_items[:, columns]
        of_items = part.changes.item_covariance[np.ix_(columns, columns)]
        covariance = covariance + weight**2 * of_items
        spreads.append(weight * np.sqrt(of_part.seed_variance[columns]))
    of_seeds = np.einsum("pa,pq,qa->a", spreads, seed_correlation(parts), spreads)
    return NetGains(draws, on_items, of_seeds, covariance, margin), tuple(places)
