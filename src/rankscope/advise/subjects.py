"""Retention by subject: where an arm forgot."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from rankscope.advise.arms import adjusted_within_family, retention_by_unit, trials_by_arm
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import align_scores, stored_scores
from rankscope.records import (
    BASE,
    ItemScores,
    StudyRecords,
    SubjectChange,
    TaskAdvice,
    TrialRecords,
)

MOST_ARMS = 16
"""Largest number of arms per training task, to keep the figure readable."""


def subject_changes(
    study: StudyRecords, task_advice: Sequence[TaskAdvice]
) -> tuple[SubjectChange, ...]:
    """Tuned minus base by subject of each retention task, test split.

    Covers the arms that the advice names or compares, each at its chosen learning rate. Tasks with
    fewer than two subjects are skipped, and so are items without a subject.
    """
    arms = list(trials_by_arm(study.trials).values())
    found: list[SubjectChange] = []
    for advice in task_advice:
        named = compared_arm_labels(advice)
        own = [arm for arm in arms if arm[0].spec.task == advice.task]
        for arm in [arm for arm in own if arm[0].spec.arm_label in named][:MOST_ARMS]:
            found += changes_of(study, arm)
    return tuple(found)


def compared_arm_labels(advice: TaskAdvice) -> set[str]:
    """Labels of the arms that the advice of one task compares, chooses or discusses."""
    named = [label for c in advice.comparisons for label in (c.first_label, c.second_label)]
    named += [advice.chosen.label] if advice.chosen else []
    others = (advice.subject_label, advice.best_full_label, advice.best_lora_label)
    return {*named, *(label for label in others if label is not None)}


def changes_of(study: StudyRecords, arm: Sequence[TrialRecords]) -> list[SubjectChange]:
    """The changes of one arm; they form one Holm family."""
    spec, found = arm[0].spec, []
    finished = [trial for trial in arm if trial.status == "done"]
    for task in [t for of_unit in retention_by_unit(study, spec.task) for t in of_unit]:
        base = study.items.get((BASE, task.name, "test"))
        subjects = [] if base is None else subjects_of(base)
        if base is None or len(subjects) < 2:
            continue
        tuned = stored_scores(study, finished, task.name, "test")
        models = [(scores, places_of(scores)) for scores in (base, *tuned)]
        for subject in subjects:
            reference, *own = [only(scores, places, subject) for scores, places in models]
            pair = align_scores(own, [reference], trained=False)
            if pair is not None:
                found.append((task.name, subject, weighted_estimate([pair])))
    adjusted = adjusted_within_family([estimate for _, _, estimate in found])
    return [
        SubjectChange(
            task=spec.task, label=spec.arm_label, tested_on=name, subject=subject, change=estimate
        )
        for (name, subject, _), estimate in zip(found, adjusted, strict=True)
    ]


def subjects_of(scores: ItemScores) -> list[str]:
    """All subjects in alphabetical order."""
    return sorted({subject for subject in scores.subjects if subject is not None})


def places_of(scores: ItemScores) -> dict[str, list[int]]:
    """Subject -> positions of its items, ascending."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, subject in enumerate(scores.subjects):
        if subject is not None:
            found[subject].append(place)
    return dict(found)


def only(scores: ItemScores, places: Mapping[str, list[int]], subject: str) -> ItemScores:
    """The scores of one subject's items, without subject labels."""
    kept = places.get(subject, [])
    rows = np.array(kept, dtype=np.intp)
    return ItemScores(
        item_ids=tuple(scores.item_ids[i] for i in kept),
        scores=scores.scores[rows],
        gold_logprobs=scores.gold_logprobs[rows],
        subjects=(None,) * len(kept),
    )
