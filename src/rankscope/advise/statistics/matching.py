"""Scores of models on the same items: matched by their ids, with the clusters items stand in."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rankscope.advise.statistics.estimates import Comparison
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.records import BASE, ItemScores, Split, StudyRecords, TrialRecords

FEWEST_CLUSTERS = 10
"""Subjects or passages below which they are the task itself, not a sample of them."""


def paired_scores(
    study: StudyRecords, trials: Sequence[TrialRecords], task: str, split: Split
) -> Comparison | None:
    """Scores of trials (S, N) against the base (N,) on the items all of them answered.

    None where the base, every trial, or every common item is missing. Items whose score is not
    finite for one of the models are left out for all.
    """
    base = study.items.get((BASE, task, split))
    tuned = stored_scores(study, trials, task, split)
    return None if base is None else align_scores(tuned, [base], trained=False)


@lru_cache(maxsize=256)
def cluster_labels(subjects: tuple[str | None, ...]) -> npt.NDArray[np.intp] | None:
    """Labels of the clusters that items with these ``subjects`` stand in; None: by themselves.

    A subject (or a passage, where a data set gives that as its items' subject) is a cluster where
    there are ``FEWEST_CLUSTERS`` of them or more. With fewer they are what the task consists of
    rather than a sample of what it might, and errors from so few clusters are not to be trusted
    (Cameron & Miller 2015). An item without a subject stands by itself.
    """
    named = len({s for s in subjects if s is not None})
    if not FEWEST_CLUSTERS <= named < len(subjects):
        return None
    position: dict[str, int] = {}
    labels = np.array(
        [-1 - i if s is None else position.setdefault(s, i) for i, s in enumerate(subjects)],
        dtype=np.intp,
    )
    labels.flags.writeable = False
    return labels


def stored_scores(
    study: StudyRecords,
    trials: Sequence[TrialRecords],
    task: str,
    split: Split,
    base: bool = False,
) -> list[ItemScores]:
    """What is stored of the trials' scores, or of the base's."""
    names = [BASE] if base else [t.spec.trial_id for t in trials]
    return [s for name in names if (s := study.items.get((name, task, split)))]


def trials_with_all_scores(
    study: StudyRecords, trials: Sequence[TrialRecords], tasks: Sequence[str], split: Split
) -> list[TrialRecords]:
    """The trials that have a score on each of the tasks."""
    return [
        t for t in trials if all((t.spec.trial_id, name, split) in study.items for name in tasks)
    ]


def align_scores(
    tuned: Sequence[ItemScores], reference: Sequence[ItemScores] | None, trained: bool
) -> Comparison | None:
    """Scores of the items that every model has; None where there is no model or no such item."""
    if not tuned or (reference is not None and not reference):
        return None
    rows, subjects = _aligned([*tuned, *(reference or ())])
    if not rows.shape[1]:
        return None
    split = len(tuned)
    others = None if reference is None else rows[split:] if trained else rows[split]
    return Comparison(rows[:split], others, cluster_labels(subjects))


def _aligned(models: Sequence[ItemScores]) -> tuple[ScoreArray, tuple[str | None, ...]]:
    """(models, N) scores of the items that every model has, in the first's order; their subjects.

    Items whose score is not finite for one of the models are left out.
    """
    first = models[0]
    ids, subjects = first.item_ids, first.subjects
    if all(m.item_ids is ids or m.item_ids == ids for m in models):
        rows = np.stack([m.scores for m in models])
    else:
        by_id = [dict(zip(m.item_ids, m.scores.tolist(), strict=True)) for m in models]
        kept = [k for k, i in enumerate(ids) if all(i in scores for scores in by_id)]
        rows = np.array([[scores[ids[k]] for k in kept] for scores in by_id], dtype=np.float64)
        rows = rows.reshape(len(models), len(kept))
        subjects = tuple(subjects[k] for k in kept)
    finite = np.asarray(np.isfinite(rows).all(axis=0))
    if bool(finite.all()):
        return rows, subjects
    return rows[:, finite], tuple(
        s for s, keep in zip(subjects, finite.tolist(), strict=True) if keep
    )
