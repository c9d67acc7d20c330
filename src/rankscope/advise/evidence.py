"""What the scores of a study say of the net gains of its arms, as the posterior takes it.

Shapes: A arms, S seeds of an arm, N items. All scored items count, validation and test: the
posterior shrinks every arm, which takes the place of confirming a choice on items held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, log10, nan

import numpy as np
import numpy.typing as npt

from rankscope.advise.posterior import Array, NetGains
from rankscope.advise.statistics.matching import ScoreKind, cluster_labels
from rankscope.records import (
    BASE,
    CurvePoint,
    ItemScores,
    Split,
    StudyRecords,
    TrialRecords,
    TrialSpec,
    finished_trials,
)

SCORED_SPLITS: tuple[Split, ...] = ("validation", "test")
UNANIMOUS = 2.0
"""Right-or-wrong items that are added to every arm, one for each side, so that few items that
agree are not taken for certainty (Agresti & Min 2005)."""
ONE_ITEM = 1.0  # Variance of the change of an item if a single one was scored
LEAST_DOUBT = 1e-6  # Variance that a score before the end has over one at the end, at the least
LEVELED = 0.5  # ``share`` of :func:`pooled` in nats, below 1: some errors are really larger
ALPHA_POWER = 0.75
"""A rate of 1e-3 at alpha 16 counts as 1e-3 / 4^.75 at alpha 64, whatever the rank. Of 0, .5, .75
and 1 the likeliest power over kept studies: docs/findings/2026-11-29-posterior.md."""
RUNG_FREEDOM = 2.0
"""Of the prior by which scores before the end of training vary around where they are heading."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task of a net gain: how much its change against the base counts."""

    task: str
    measure: ScoreKind
    weight: float


@dataclass(frozen=True, slots=True)
class _Items:
    """Items of a task that the base answered, in both splits, and how to find a model's answers."""

    study: StudyRecords
    part: Part
    ids: tuple[tuple[Split, tuple[str, ...]], ...]
    base: Array  # (N,)
    labels: npt.NDArray[np.intp] | None  # Cluster of every item

    @classmethod
    def of(cls, study: StudyRecords, part: Part) -> "_Items":
        found = [(s, study.items.get((BASE, part.task, s))) for s in SCORED_SPLITS]
        known = [(split, items) for split, items in found if items is not None]
        subjects = tuple(subject for _, items in known for subject in items.subjects)
        ids = tuple((split, items.item_ids) for split, items in known)
        scores = [_measured(items, part.measure) for _, items in known]
        base = np.concatenate(scores) if scores else np.empty(0)
        return cls(study, part, ids, base, cluster_labels(subjects))

    def changes(self, model: str, rung: CurvePoint | None = None, *, tested: bool = False) -> Array:
        """A model's scores minus the base's, (N,); NaN for items that it did not answer.

        Args:
            tested: leave out validation items once there are test items: training stopped where
                they were best.
        """
        rows = []
        tested = tested and (model, self.part.task, "test") in self.study.items
        for split, ids in self.ids:
            items = self.study.items.get((model, self.part.task, split))
            if tested and split == "validation":
                items = None
            if rung is not None:
                items = None
                if split == "validation" and rung.item_scores:
                    items = rung_items(rung, self.study.items[BASE, self.part.task, split])
            if items is None:
                rows.append(np.full(len(ids), nan))
            elif items.item_ids == ids:
                rows.append(_measured(items, self.part.measure))
            else:
                scores = dict(
                    zip(items.item_ids, _measured(items, self.part.measure).tolist(), strict=True)
                )
                rows.append(np.array([scores.get(i, nan) for i in ids], dtype=np.float64))
        with np.errstate(invalid="ignore"):  # Both may give an answer a probability of 0
            changes: Array = np.concatenate(rows) - self.base if rows else np.empty(0)
        return np.where(np.isfinite(changes), changes, nan)


def _measured(items: ItemScores, measure: ScoreKind) -> Array:
    return items.scores if measure == "score" else items.gold_logprobs


def rung_items(point: CurvePoint, base: ItemScores) -> ItemScores:
    """The items of a point, named as the base's: both follow the order of the split."""
    gold = [nan if logprob is None else logprob for logprob in point.gold_logprobs]
    return ItemScores(
        item_ids=base.item_ids[: point.n],
        scores=np.array(point.item_scores),
        gold_logprobs=np.array(gold),
        subjects=base.subjects[: point.n],
    )


def measure(
    study: StudyRecords, parts: Sequence[Part], arms: Sequence[Sequence[TrialRecords]]
) -> tuple[NetGains, tuple[int, ...]] | None:
    """Net gains of the arms that have a score on every part, and their places; None without any.

    An arm whose trials were all stopped stands by its scores at the last rung that it reached,
    moved by what arms that trained to their end gained from there, and by how much that varied.
    """
    items = [_Items.of(study, part) for part in parts]
    if not items:
        return None
    rows: dict[int, list[Array]] = {}
    for place, trials in enumerate(arms):
        if (ended := _ended(items, trials)) is not None:
            rows[place] = ended
    moved, rises = dict[int, tuple[float, float]](), dict[float, list[float]]()
    for place, trials in enumerate(arms):
        stopped = [t for t in trials if t.stop is not None] if place not in rows else []
        if stopped and (at_rung := _at_rung(items, stopped, _share_done(stopped[0]))) is not None:
            rows[place] = at_rung
            share = _share_done(stopped[0])
            if share not in rises:
                rises[share] = _rises(items, arms, share)
            moved[place] = _heading(rises[share], _net(items, at_rung))
    if not rows:
        return None
    places = sorted(rows)
    means, covariance = _over_items(items, [rows[i] for i in places])
    seeds, squares, noise = zip(*(_over_seeds(items, rows[i]) for i in places), strict=True)
    rise, extra = zip(*(moved.get(i, (0.0, 0.0)) for i in places), strict=True)
    evidence = NetGains(
        means=means + np.array(rise),
        item_covariance=covariance,
        seeds=np.array(seeds, dtype=np.float64),
        varies=np.array([float(arms[i][0].spec.prompt is None) for i in places]),
        squares=np.array(squares),
        answer_noise=np.array(noise),
        kinds=[arms[i][0].spec.kind for i in places],
        axes=np.array([axes_of(arms[i][0].spec, arms[i]) for i in places]),
        extra=np.array(extra),
    )
    return evidence, tuple(places)


def axes_of(spec: TrialSpec, trials: Sequence[TrialRecords]) -> tuple[float, float, float]:
    """Where settings of an arm are on the axes of the posterior, as in :class:`NetGains`. A missing
    alpha counts as 1, and so does a rate that is 0 or unknown."""
    rows = spec.rows or next((t.training.rows for t in trials if t.training is not None), 1)
    alpha = spec.scaling * spec.rank if spec.alpha and spec.rank else 1.0  # LoRA's, of any scaling
    return log2(spec.rank or 1), log2(rows or 1), log10((spec.lr or 1.0) * alpha**ALPHA_POWER)


def _ended(items: Sequence[_Items], trials: Sequence[TrialRecords]) -> list[Array] | None:
    """Changes of one arm's finished models, part by part: (S, N), NaN on items not all answered.

    Only models that were scored on every part count; None without any.
    """
    ids = [trial.spec.trial_id for trial in finished_trials(trials)]
    early = any(trial.spec.early_stop is not None for trial in trials)
    return _stacked([[part.changes(model, tested=early) for part in items] for model in ids])


def _stacked(models: Sequence[Sequence[Array]]) -> list[Array] | None:
    complete = [rows for rows in models if all(np.isfinite(row).any() for row in rows)]
    if not complete:
        return None
    stacked = [np.stack(rows) for rows in zip(*complete, strict=True)]
    common = [np.where(np.isfinite(rows).all(axis=0), rows, nan) for rows in stacked]
    return common if all(np.isfinite(rows).any() for rows in common) else None


def _share_done(trial: TrialRecords) -> float:
    assert trial.stop is not None
    return trial.stop.train.steps / trial.stop.num_steps


def _at_rung(
    items: Sequence[_Items], trials: Sequence[TrialRecords], share: float
) -> list[Array] | None:
    """The same at the rung after that share of the steps."""
    models = []
    for trial in trials:
        train = trial.training
        steps = trial.stop.num_steps if trial.stop else train.steps if train else 0
        points = {
            p.task: p for p in trial.curve if p.item_scores and abs(p.step - share * steps) < 1
        }
        if all(part.part.task in points for part in items):
            models.append([i.changes(trial.spec.trial_id, points[i.part.task]) for i in items])
    return _stacked(models)


def _rises(
    items: Sequence[_Items], arms: Sequence[Sequence[TrialRecords]], share: float
) -> list[float]:
    """How much net gains rose from the rung after that share of the steps to the end of training,
    of the arms that trained to their end."""
    found = []
    for trials in arms:
        before, after = _at_rung(items, finished_trials(trials), share), _ended(items, trials)
        if before is not None and after is not None:
            found.append(_net(items, after) - _net(items, before))
    return found


def _heading(rises: Sequence[float], net: float) -> tuple[float, float]:
    """The expected rise of an arm that had a net gain at a rung, and its variance.

    Without arms that ended, it may rise or fall by as much again. At a rung no arm has ended, so
    ``adaptive.py`` goes by each arm's own last rise.
    """
    if not rises:
        return 0.0, net**2 + LEAST_DOUBT
    mean = float(np.mean(rises))
    spread = float(np.square(np.array(rises) - mean).sum())
    # Before any spread is seen, a curve is as uncertain as it is steep.
    variance = (RUNG_FREEDOM * mean**2 + spread) / (RUNG_FREEDOM + len(rises) - 1)
    return mean, variance * (1 + 1 / len(rises)) + LEAST_DOUBT


def _net(items: Sequence[_Items], rows: Sequence[Array]) -> float:
    return sum(
        part.part.weight * float(np.nanmean(row)) for part, row in zip(items, rows, strict=True)
    )


def _over_items(items: Sequence[_Items], arms: Sequence[Sequence[Array]]) -> tuple[Array, Array]:
    """Net gains, (A,), and the covariance of their errors due to the choice of items, (A, A).

    The covariance is a product of residuals with themselves, zero where an arm has no score, so it
    is positive whatever items the arms share; then it is :func:`pooled`.
    """
    number = len(arms)
    means, covariance = np.zeros(number), np.zeros((number, number))
    for position, part in enumerate(items):
        changes = np.stack([rows[position].mean(axis=0) for rows in arms])  # (A, N)
        known = np.isfinite(changes)
        n = known.sum(axis=1)
        mean = np.where(known, changes, 0.0).sum(axis=1) / n
        residuals = np.where(known, changes - mean[:, None], 0.0)
        units = n
        if part.labels is not None:
            residuals = np.stack(
                [np.bincount(part.labels, r, part.labels.max() + 1) for r in residuals]
            )
            units = np.array([len(np.unique(part.labels[k])) for k in known])
        freedom = np.maximum(1, units - 1)
        # Student's t has a larger variance than the normal distribution it replaces.
        stretch = np.where(freedom > 3, freedom / np.maximum(1, freedom - 2), 3.0)
        scaled = residuals * np.sqrt(stretch * units / freedom)[:, None] / n[:, None]
        weight = part.part.weight
        means += weight * mean
        is_right_or_wrong = bool(np.isin(part.base, (0.0, 1.0)).all())
        share = 1.0 if is_right_or_wrong else LEVELED
        covariance += weight**2 * pooled(scaled @ scaled.T, n, share)
        own = UNANIMOUS / (n + UNANIMOUS) ** 2 if is_right_or_wrong else np.zeros(number)
        own = np.where(units < 2, ONE_ITEM, own)
        covariance[np.diag_indices(number)] += weight**2 * own
    return means, covariance


def pooled(covariance: Array, n: npt.NDArray[np.intp], share: float) -> Array:
    """The covariance (A, A) of means over n items (A,), shrunk toward that of arms whose items all
    vary alike and whose errors are all equally correlated (Ledoit & Wolf 2004, "Honey, I shrunk the
    sample covariance matrix"): correlations go half of the way to their mean, standard errors by
    item a ``share`` of the way to their median; with 1 to their root mean square.

    Errors grow with gains, on the same items. Unpooled, "all arms are alike, and low" would be
    likelier than gains that differ (Peelle's pertinent puzzle, D'Agostini 1994), most of all next
    to an arm that hardly trained, whose gain of about 0 would be known best.
    """
    variances, number = np.diag(covariance), len(n)
    sizes = np.sqrt(np.outer(variances, variances))
    correlations = np.divide(covariance, sizes, out=np.eye(number), where=sizes > 0)
    common = (correlations.sum() - number) / max(1, number * (number - 1))
    target = common + (1 - common) * np.eye(number)
    by_item = np.sqrt(variances * n)
    usual = np.sqrt((variances * n).mean()) if share == 1 else np.median(by_item)
    scale = (by_item + share * (usual - by_item)) / np.sqrt(n)
    return np.asarray(np.outer(scale, scale) * (correlations + target) / 2)


def _over_seeds(items: Sequence[_Items], arm: Sequence[Array]) -> tuple[int, float, float]:
    """Of one arm: seeds, their squared deviations, and the part of one's variance by answers.

    The means of the seeds vary between seeds and by the noise of their answers. That noise is part
    of the covariance over items already.
    """
    seeds = len(arm[0])
    by_seed, noise = np.zeros(seeds), 0.0
    for part, rows in zip(items, arm, strict=True):
        known = rows[:, np.isfinite(rows[0])]
        n, means = known.shape[1], known.mean(axis=1)
        by_seed += part.part.weight * means
        if seeds > 1 and n > 1:
            residuals = known - known.mean(axis=0) - means[:, None] + means.mean()
            variance = float(np.square(residuals).sum()) / (seeds - 1) / (n - 1) / n
            noise += part.part.weight**2 * variance
    return seeds, float(np.square(by_seed - by_seed.mean()).sum()), noise
