"""Evidence of how much the arms of a study changed a task, in the form that the posterior takes.

Shapes: A arms, S seeds of an arm, N items. All scored items count, validation and test. The
posterior shrinks every arm, so no items need to be held back to confirm a choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2, log10, nan

import numpy as np
import numpy.typing as npt
from scipy import special

from rankscope.advise.posterior import Array, Changes, broken_arms
from rankscope.advise.statistics.matching import cluster_labels
from rankscope.records import BASE, Split, StudyRecords, TrialRecords, TrialSpec, finished_trials

SCORED_SPLITS: tuple[Split, ...] = ("validation", "test")
UNANIMOUS = 2.0
"""Right-or-wrong items added to every arm, one on each side, so that few items that agree do not
count as certainty (Agresti & Min 2005)."""
LEVELED = 0.5  # ``share`` of :func:`pooled` in nats, below 1: some errors are really larger
ALPHA_POWER = 0.75
"""Power of alpha in the effective rate: 1e-3 at alpha 16 counts as 1e-3 / 4^0.75 at alpha 64,
whatever the rank. It is the likeliest of 0, 0.5, 0.75 and 1 over kept studies."""
TYPICAL_SPREADS = 0.35, 3.0  # Between seeds, in ``UNIT``: of supervised training, of any other
SHRUNK = 4.0  # Seeds without a correlation that are added, see :func:`seed_correlation`
FORGOTTEN = -0.5  # Expected change of a task that is not trained on, in ``UNIT``


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a net gain, with the weight of its change against the base."""

    task: str
    weight: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured changes of one task, and the arms that have them."""

    part: Part
    changes: Changes
    places: tuple[int, ...]  # The arms with scores, as positions among all arms
    deviations: Mapping[str, float]
    """Maps a trained model to its change minus its arm's mean, for arms with several seeds."""


@dataclass(frozen=True, slots=True)
class _Items:
    """Items of a task that the base answered, in both splits, to look up a model's answers."""

    study: StudyRecords
    task: str
    ids: tuple[tuple[Split, tuple[str, ...]], ...]
    base: Array  # (N,)
    labels: npt.NDArray[np.intp] | None  # Cluster of every item

    @classmethod
    def of(cls, study: StudyRecords, task: str) -> "_Items":
        found = [(s, study.items.get((BASE, task, s))) for s in SCORED_SPLITS]
        known = [(split, items) for split, items in found if items is not None]
        subjects = tuple(subject for _, items in known for subject in items.subjects)
        ids = tuple((split, items.item_ids) for split, items in known)
        scores = [items.scores for _, items in known]
        base = np.concatenate(scores) if scores else np.empty(0)
        return cls(
            study,
            task,
            ids,
            base,
            cluster_labels(subjects, tuple(i for _, items in known for i in items.item_ids)),
        )

    def changes(self, model: str, *, tested: bool = False) -> Array:
        """Return a model's scores minus the base's, (N,); NaN for items that it did not answer.

        Args:
            tested: leave out validation items if there are test items, because training stopped
                where validation scores were best.
        """
        rows = []
        tested = tested and (model, self.task, "test") in self.study.items
        for split, ids in self.ids:
            items = self.study.items.get((model, self.task, split))
            if tested and split == "validation":
                items = None
            if items is None:
                rows.append(np.full(len(ids), nan))
            elif items.item_ids == ids:
                rows.append(items.scores)
            else:
                scores = dict(zip(items.item_ids, items.scores.tolist(), strict=True))
                rows.append(np.array([scores.get(i, nan) for i in ids], dtype=np.float64))
        with np.errstate(invalid="ignore"):  # Both may give an answer a probability of 0
            changes: Array = np.concatenate(rows) - self.base if rows else np.empty(0)
        return np.where(np.isfinite(changes), changes, nan)

    def mean_errors(self, trials: Sequence[TrialRecords]) -> tuple[float, float]:
        """Return the error variances of the means of an arm and of the base, if no items are
        stored.

        They are NaN if unknown.
        """
        models = [BASE, *(t.spec.trial_id for t in finished_trials(trials))]
        records = [self.study.evals.get((model, self.task, "test")) for model in models]
        base, *own = [nan if r is None or r.n < 2 else r.standard_error or nan for r in records]
        return float(np.mean(np.square(own))) if own else nan, base**2


def measure(
    study: StudyRecords, part: Part, arms: Sequence[Sequence[TrialRecords]]
) -> Measured | None:
    """Measure the changes of arms that have a score; None without any, or if no error is known."""
    items = _Items.of(study, part.task)
    rows: dict[int, dict[str, Array]] = {}
    for place, trials in enumerate(arms):
        if ended := _ended(items, trials):
            rows[place] = ended
    if not rows:
        return None
    places = sorted(rows)
    models = [np.stack(list(rows[i].values())) for i in places]
    if items.base.size == 1:
        found = _of_means(items, models, [arms[i] for i in places])
    else:
        found = _over_items(items, models)
    if found is None:
        return None
    means, covariance = found
    squares, noise = zip(*map(_over_seeds, models), strict=True)
    is_plain = set(study.config.objectives()) <= {"sft"}
    is_trained = arms[places[0]][0].spec.task == part.task
    changes = Changes(
        means=means,
        item_covariance=covariance,
        seeds=np.array([len(of_arm) for of_arm in models], dtype=np.float64),
        varies=np.array([float(arms[i][0].spec.prompt is None) for i in places]),
        squares=np.array(squares),
        answer_noise=np.array(noise),
        kinds=[arms[i][0].spec.kind for i in places],
        axes=np.array([axes_of(arms[i][0].spec, arms[i]) for i in places]),
        extra=np.zeros(len(places)),
        typical_spread=TYPICAL_SPREADS[not is_plain],
        prior_mean=0.0 if is_trained else FORGOTTEN,
    )
    return Measured(part, changes, tuple(places), _deviations(rows.values()))


def axes_of(spec: TrialSpec, trials: Sequence[TrialRecords]) -> tuple[float, float, float]:
    """Return the place of an arm's settings on the axes of the posterior, as in :class:`Changes`.

    A missing alpha counts as 1, and so does a rate that is 0 or unknown.
    """
    rows = spec.rows or next((t.train.rows for t in trials if t.train is not None), 1)
    alpha = spec.scaling * spec.rank if spec.alpha and spec.rank else 1.0  # LoRA's, of any scaling
    return log2(spec.rank or 1), log2(rows or 1), log10((spec.lr or 1.0) * alpha**ALPHA_POWER)


def _ended(items: _Items, trials: Sequence[TrialRecords]) -> dict[str, Array]:
    """Return the changes of one arm's finished models by their ids, (N,) each.

    Items that some of them did not answer are NaN.
    """
    early = any(trial.spec.early_stop is not None for trial in trials)
    ids = [trial.spec.trial_id for trial in finished_trials(trials)]
    return _common({model: items.changes(model, tested=early) for model in ids})


def _common(models: Mapping[str, Array]) -> dict[str, Array]:
    found = {model: row for model, row in models.items() if np.isfinite(row).any()}
    if not found:
        return {}
    known = np.isfinite(np.stack(list(found.values()))).all(axis=0)
    return {m: np.where(known, row, nan) for m, row in found.items()} if known.any() else {}


def _of_means(
    items: _Items, models: Sequence[Array], arms: Sequence[Sequence[TrialRecords]]
) -> tuple[Array, Array] | None:
    """Measure means without items, whose errors follow from the number of items behind them.

    Without that number the spread of seeds takes its place. None if no arm has a second seed.
    """
    means = np.array([rows.mean() for rows in models])
    own, base = zip(*(items.mean_errors(trials) for trials in arms), strict=True)
    errors = np.array(own)
    if not np.isfinite([*own, *base]).any() and max(map(len, models)) < 2:
        return None
    errors = np.where(np.isfinite(errors), errors, np.nanmax([0.0, *own]))
    return means, np.diag(errors) + np.nanmax([0.0, *base])


def _over_items(items: _Items, arms: Sequence[Array]) -> tuple[Array, Array]:
    """Return changes, (A,), and the covariance of their errors due to the choice of items, (A, A).

    Two arms share errors as far as they share items. The covariance is a product of residuals with
    themselves, zero where an arm has no score, so it is positive. Then the errors of arms that
    training did not break are :func:`pooled`. They share none with broken arms, because pooled
    errors beside unpooled shared ones would not form a covariance.
    """
    changes = np.stack([rows.mean(axis=0) for rows in arms])  # (A, N)
    known = np.isfinite(changes)
    n = known.sum(axis=1)
    means = np.where(known, changes, 0.0).sum(axis=1) / n
    residuals = np.where(known, changes - means[:, None], 0.0)
    units = n
    if items.labels is not None:
        size = items.labels.max() + 1
        residuals = np.stack([np.bincount(items.labels, r, size) for r in residuals])
        units = np.array([len(np.unique(items.labels[k])) for k in known])
    freedom = np.maximum(1, units - 1)
    # A normal error as wide as Student's t of so few units, at 95 %.
    stretch = special.stdtrit(freedom, 0.975) / special.ndtri(0.975)
    scaled = residuals * (stretch * np.sqrt(units / freedom) / n)[:, None]
    is_right_or_wrong = bool(np.isin(items.base, (0.0, 1.0)).all())
    covariance = scaled @ scaled.T
    together = (known.astype(float) @ known.T) / np.sqrt(np.outer(n, n))
    whole = ~broken_arms(means)
    pairs = np.ix_(whole, whole)
    share = 1.0 if is_right_or_wrong else LEVELED
    covariance[np.logical_xor.outer(whole, whole)] = 0.0
    covariance[pairs] = pooled(covariance[pairs], n[whole], share, together[pairs])
    counted = np.where(np.diag(covariance) > 0, n, units)  # Clusters that all agree are few
    own = UNANIMOUS * (stretch / (counted + UNANIMOUS)) ** 2 * is_right_or_wrong
    covariance[np.diag_indices(len(n))] += np.where(units < 2, 1.0, own)
    return means, covariance


def pooled(
    covariance: Array, n: npt.NDArray[np.intp], share: float, together: Array | float = 1.0
) -> Array:
    """Shrink the covariance (A, A) of means over n items (A,) (Ledoit & Wolf 2004).

    The target is arms whose items all vary alike, and whose errors are all equally correlated
    ("Honey, I shrunk the sample covariance matrix"). Correlations go half of the way to their mean.
    Standard errors by item go a ``share`` of the way to their median; with 1, to their root mean
    square.

    Errors grow with gains, on the same items. Without pooling, "all arms are alike, and low" would
    be likelier than gains that differ (Peelle's pertinent puzzle, D'Agostini 1994). That holds most
    of all next to an arm that hardly trained, whose gain of about 0 would be known best.

    Args:
        together: shared items of two arms over the geometric mean of their items, (A, A).
    """
    variances, number = np.diag(covariance), len(n)
    sizes = np.sqrt(np.outer(variances, variances))
    correlations = np.divide(covariance, sizes, out=np.eye(number), where=sizes > 0)
    shared = np.broadcast_to(together, sizes.shape)
    common = (correlations.sum() - number) / max(1e-9, shared.sum() - number)
    common = min(1.0, max(0.0, common))
    target = common * shared + (1 - common) * np.eye(number)
    by_item = np.sqrt(variances * n)
    usual = np.sqrt((variances * n).mean()) if share == 1 else np.median(by_item)
    scale = (by_item + share * (usual - by_item)) / np.sqrt(n)
    return np.asarray(np.outer(scale, scale) * (correlations + target) / 2)


def _over_seeds(rows: Array) -> tuple[float, float]:
    """Return the squared deviations of one arm's seeds, and the noise of answers in one's variance.

    The means of the seeds vary between seeds and by the noise of their answers. The covariance over
    items contains that noise already.
    """
    known = rows[:, np.isfinite(rows[0])]
    (seeds, n), means = known.shape, known.mean(axis=1)
    noise = 0.0
    if seeds > 1 and n > 1:
        residuals = known - known.mean(axis=0) - means[:, None] + means.mean()
        noise = float(np.square(residuals).sum()) / (seeds - 1) / (n - 1) / n
    return float(np.square(means - means.mean()).sum()), noise


def _deviations(arms: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    found = dict[str, float]()
    for models in arms:
        if len(models) > 1:
            mean = float(np.nanmean(np.stack(list(models.values()))))
            found |= {model: float(np.nanmean(row)) - mean for model, row in models.items()}
    return found


def seed_correlation(parts: Sequence[Measured]) -> Array:
    """Estimate the correlation between tasks of the seeds' deviations from their arm, (P, P).

    All arms are pooled. Few seeds hardly show a correlation, so it is shrunk as if ``SHRUNK``
    further seeds had shown none.
    """
    shared = set.intersection(*(set(part.deviations) for part in parts))
    off = np.array([[part.deviations[model] for model in sorted(shared)] for part in parts])
    sizes = np.sqrt(np.square(off).sum(axis=1)) if shared else np.zeros(len(parts))
    unit = np.divide(off, sizes[:, None], out=np.zeros_like(off), where=sizes[:, None] > 0)
    kept = len(shared) / (len(shared) + SHRUNK)
    return np.asarray(kept * unit @ unit.T * (1 - np.eye(len(parts))) + np.eye(len(parts)))
