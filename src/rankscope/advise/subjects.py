"""Retention by subject: where an arm forgot."""

from collections.abc import Sequence

import numpy as np

from rankscope.advise.arms import adjusted_records, trials_by_arm
from rankscope.advise.retention import retained_tasks
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import align_scores, stored_scores
from rankscope.records import (
    BASE,
    ItemScores,
    StudyRecords,
    SubjectChange,
    TaskAdvice,
    TrialRecords,
    finished_trials,
)

MOST_ARMS = 16  # Largest number of arms per training task, to keep the figure readable


def subject_changes(
    study: StudyRecords, task_advice: Sequence[TaskAdvice]
) -> tuple[SubjectChange, ...]:
    """Tuned minus base by subject of each retention task, test split.

    Covers the arms that the advice names or compares, each at its chosen learning rate. Tasks with
    fewer than two subjects are skipped, and so are items without a subject.
    """
    arms = list(trials_by_arm(study.trials).values())
    changes: list[SubjectChange] = []
    for advice in task_advice:
        labels = compared_arm_labels(advice)
        named = [
            arm
            for arm in arms
            if arm[0].spec.task == advice.task and arm[0].spec.arm_label in labels
        ]
        for arm in named[:MOST_ARMS]:
            changes += _changes_of_arm(study, arm)
    return tuple(changes)


def compared_arm_labels(advice: TaskAdvice) -> set[str]:
    """Labels of the arms that the advice of one task compares, chooses or discusses."""
    labels = [label for c in advice.comparisons for label in (c.first_label, c.second_label)]
    labels += [advice.chosen.label] if advice.chosen else []
    others = (advice.subject_label, advice.best_full_label, advice.best_lora_label)
    return {*labels, *(label for label in others if label is not None)}


def _changes_of_arm(study: StudyRecords, arm: Sequence[TrialRecords]) -> list[SubjectChange]:
    spec = arm[0].spec
    changes: list[SubjectChange] = []
    finished = finished_trials(arm)
    for task in retained_tasks(study.tasks, spec.task):
        base = study.items.get((BASE, task.name, "test"))
        subjects = set() if base is None else {s for s in base.subjects if s is not None}
        if base is None or len(subjects) < 2:
            continue
        base_parts = _by_subject(base)
        tuned_parts = [_by_subject(s) for s in stored_scores(study, finished, task.name, "test")]
        for subject in sorted(subjects):
            tuned = [parts[subject] for parts in tuned_parts if subject in parts]
            if len(tuned) < len(tuned_parts):
                continue
            pair = align_scores(tuned, [base_parts[subject]], trained=False)
            if pair is not None:
                changes.append(
                    SubjectChange(
                        task=spec.task,
                        label=spec.arm_label,
                        tested_on=task.name,
                        subject=subject,
                        change=weighted_estimate([pair]),
                    )
                )
    return adjusted_records(changes, "change")


def _by_subject(scores: ItemScores) -> dict[str, ItemScores]:
    """Subject -> the scores of its items, without subject labels."""
    places: dict[str, list[int]] = {}
    for place, subject in enumerate(scores.subjects):
        if subject is not None:
            places.setdefault(subject, []).append(place)
    return {
        subject: ItemScores(
            item_ids=tuple(scores.item_ids[i] for i in kept),
            scores=scores.scores[np.array(kept)],
            gold_logprobs=scores.gold_logprobs[np.array(kept)],
            subjects=(None,) * len(kept),
        )
        for subject, kept in places.items()
    }
