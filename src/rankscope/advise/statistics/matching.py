"""Scores of several models on the same items, matched by item id, with their clusters."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.records import (
    BASE,
    Estimate,
    ItemScores,
    ScoredModel,
    Split,
    StudyRecords,
    TrialRecords,
    original_of,
)

FEWEST_CLUSTERS = 5


def compared_scores(
    study: StudyRecords,
    trials: Sequence[TrialRecords],
    task: str,
    split: Split = "test",
) -> Comparison | None:
    """Match scores of trials (S, N) and of the base (N,), on the items that all of them answered.

    None if one side is missing, or no item is common. Items with a non-finite score of any model
    are dropped.
    """
    rows, base = (stored_scores(study, t, task, split) for t in (trials, None))
    return align_scores(rows, base, trained=False)


@lru_cache(maxsize=256)
def cluster_labels(
    subjects: tuple[str | None, ...], item_ids: tuple[str, ...] = ()
) -> npt.NDArray[np.intp] | None:
    """Return the cluster label of every item, (N,); None if items are independent.

    Subjects (or passages, if the data set records them as subjects) are clusters. Their items may
    depend on each other, and others could have been asked. Few subjects make a wide interval by
    Student's t. Fewer than ``FEWEST_CLUSTERS`` only classify the items: they were not drawn from
    others. Copies of one row are a cluster; any other item without a subject is its own.
    """
    originals = map(original_of, item_ids) if item_ids else map(str, range(len(subjects)))
    names = [
        (s, "") if s is not None else ("", i) for s, i in zip(subjects, originals, strict=True)
    ]
    position: dict[tuple[str, str], int] = {}
    labels = np.array([position.setdefault(n, len(position)) for n in names], dtype=np.intp)
    labels.flags.writeable = False
    named = {subject for subject in subjects if subject is not None}
    is_classification = 0 < len(named) < FEWEST_CLUSTERS
    return None if is_classification or len(position) == len(labels) else labels


def stored_scores(
    study: StudyRecords,
    trials: Sequence[TrialRecords] | None,
    task: str,
    split: Split,
) -> list[ItemScores]:
    """Return item scores of the trials that have them; the base's if ``trials`` is None."""
    models = [BASE] if trials is None else [t.spec.trial_id for t in trials]
    return scores_of_models(study, models, task, split)


def scores_of_models(
    study: StudyRecords, models: Sequence[ScoredModel], task: str, split: Split
) -> list[ItemScores]:
    """Return item scores of the models that have them: the base, trials or variants."""
    return [s for model in models if (s := study.items.get((model, task, split)))]


def align_scores(
    tuned: Sequence[ItemScores], reference: Sequence[ItemScores] | None, trained: bool
) -> Comparison | None:
    """Match scores on the items that every model has; None without models or common items."""
    if not tuned or (reference is not None and not reference):
        return None
    rows, subjects, ids = _aligned([*tuned, *(reference or ())])
    if not rows.shape[1]:
        return None
    split = len(tuned)
    others = None if reference is None else rows[split:] if trained else rows[split]
    return Comparison(rows[:split], others, cluster_labels(subjects, ids))


def mean_estimate(models: Sequence[ItemScores]) -> Estimate | None:
    """Return the mean score over models and items; None without common items."""
    scores = align_scores(models, None, trained=False)
    return None if scores is None else weighted_estimate([scores])


def _aligned(
    models: Sequence[ItemScores],
) -> tuple[ScoreArray, tuple[str | None, ...], tuple[str, ...]]:
    """Return scores of common items (models, N) in the first model's order, their subjects and
    ids."""
    first = models[0]
    ids, subjects = first.item_ids, first.subjects
    if all(m.item_ids is ids or m.item_ids == ids for m in models):
        rows = np.stack([m.scores for m in models])
        kept = list(range(len(ids)))
    else:
        by_id = [dict(zip(m.item_ids, m.scores.tolist(), strict=True)) for m in models]
        kept = [k for k, i in enumerate(ids) if all(i in scores for scores in by_id)]
        rows = np.array([[scores[ids[k]] for k in kept] for scores in by_id], dtype=np.float64)
        rows = rows.reshape(len(models), len(kept))
    finite = np.asarray(np.isfinite(rows).all(axis=0))
    if bool(finite.all()) and len(kept) == len(ids):
        return rows, subjects, ids
    kept = [k for k, keep in zip(kept, finite.tolist(), strict=True) if keep]
    return rows[:, finite], tuple(subjects[k] for k in kept), tuple(ids[k] for k in kept)
