"""Arms over their seeds: what each learned, forgot, carried over and cost, with intervals.

Choosing and quoting are kept apart: ``selection_*`` fields come from the selection split alone,
every ``Estimate`` from the report split alone. A trial that failed is counted in its arm, never
left out; a trial whose score on a task is missing is left out of that task's figure only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankscope.advise.statistics import (
    mean_paired_estimate,
    negated,
    paired_estimate,
    score_estimate,
)
from rankscope.records import (
    BASE,
    FAILED,
    ArmSummary,
    Estimate,
    ItemScores,
    Split,
    StudyRecords,
    TaskRecord,
    TrialRecords,
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """One point of the grid on one training task, with all its trials."""

    task: str
    trials: tuple[TrialRecords, ...]
    summary: ArmSummary

    @property
    def finished(self) -> tuple[TrialRecords, ...]:
        """The trials that ran to the end."""
        return tuple(t for t in self.trials if t.status == "done")


def training_tasks(study: StudyRecords) -> tuple[str, ...]:
    """Tasks that were trained on, in the order of the study file, then of the trials."""
    names = [task.name for task in study.tasks if task.trained_on]
    names += [trial.spec.task for trial in study.trials]
    return tuple(dict.fromkeys(names))


def summarize(study: StudyRecords) -> dict[str, tuple[Arm, ...]]:
    """Every arm of every training task, in the order of the trials; Pareto front marked."""
    return {task: _arms_of(study, task) for task in training_tasks(study)}


def retention_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Tasks that measure forgetting for an arm trained on ``trained``.

    Forgetting is a mean over tasks, so it keeps to one unit: accuracy where any retention task has
    it, log probability otherwise.
    """
    tasks = [t for t in study.tasks if "retention" in t.roles and t.name != trained]
    accuracy = tuple(t for t in tasks if t.higher_is == "accuracy")
    return accuracy or tuple(tasks)


def transfer_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Tasks that show what an arm trained on ``trained`` carries elsewhere."""
    return tuple(
        t for t in study.tasks if t.name != trained and (t.trained_on or "cross_domain" in t.roles)
    )


def paired_scores(
    study: StudyRecords, trials: Sequence[TrialRecords], task: str, split: Split
) -> tuple[Array, Array] | None:
    """Scores of trials (S, N) and the base (N,) on the items all of them answered.

    None where the base, every trial, or every common item is missing. Items whose score is not
    finite for one of the models are left out for all.
    """
    base = study.items.get((BASE, task, split))
    tuned = [s for t in trials if (s := study.items.get((t.spec.trial_id, task, split)))]
    if base is None or not tuned:
        return None
    rows = _aligned([base, *tuned])
    return (rows[1:], rows[0]) if rows.shape[1] else None


def arm_difference(study: StudyRecords, first: Arm, second: Arm, task: str) -> Estimate | None:
    """First arm minus second arm on the report split of ``task``; None where either is missing."""
    groups = [
        [s for t in arm.finished if (s := study.items.get((t.spec.trial_id, task, "report")))]
        for arm in (first, second)
    ]
    if not all(groups):
        return None
    rows = _aligned([*groups[0], *groups[1]])
    if not rows.shape[1]:
        return None
    split = len(groups[0])
    return paired_estimate(rows[:split], rows[split:])


def item_differences(
    study: StudyRecords, first: Arm, second: Arm | None, task: str
) -> Array | None:
    """First arm minus second arm, or the base, of every report item, means over seeds: (N,)."""
    groups = [
        [s for t in arm.finished if (s := study.items.get((t.spec.trial_id, task, "report")))]
        for arm in (first, second)
        if arm is not None
    ]
    base = study.items.get((BASE, task, "report"))
    if second is None and base is not None:
        groups.append([base])
    if len(groups) < 2 or not all(groups):
        return None
    rows = _aligned([*groups[0], *groups[1]])
    split = len(groups[0])
    difference: Array = rows[:split].mean(axis=0) - rows[split:].mean(axis=0)
    return difference


def forgetting_difference(study: StudyRecords, first: Arm, second: Arm) -> float | None:
    """How much more the first arm forgot than the second, report split; None where unknown."""
    a, b = first.summary.forgetting, second.summary.forgetting
    return None if a is None or b is None else a.value - b.value


def _aligned(models: Sequence[ItemScores]) -> Array:
    """(models, N) scores of the items that every model has, in the first model's order."""
    ids = models[0].item_ids
    if all(m.item_ids == ids for m in models):
        rows = np.stack([m.scores for m in models])
    else:
        by_id = [dict(zip(m.item_ids, m.scores.tolist(), strict=True)) for m in models]
        common = [i for i in ids if all(i in scores for scores in by_id)]
        rows = np.array([[scores[i] for i in common] for scores in by_id], dtype=np.float64)
        rows = rows.reshape(len(models), len(common))
    return rows[:, np.isfinite(rows).all(axis=0)]


def _arms_of(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    groups: dict[tuple[object, ...], list[TrialRecords]] = {}
    for trial in study.trials:
        if trial.spec.task == task:
            groups.setdefault(trial.spec.arm, []).append(trial)
    arms = [Arm(task, tuple(trials), _summary(study, trials)) for trials in groups.values()]
    front = pareto_front([arm.summary for arm in arms])
    return tuple(
        Arm(a.task, a.trials, a.summary.model_copy(update={"on_pareto_front": on}))
        for a, on in zip(arms, front, strict=True)
    )


def _summary(study: StudyRecords, trials: list[TrialRecords]) -> ArmSummary:
    spec = trials[0].spec
    done = [t for t in trials if t.status == "done"]
    trained = [t.train for t in trials if t.train is not None]
    score, gain = _score_and_gain(study, done, spec.task)
    forgetting, retention = _forgetting(study, done, spec.task)
    transfer: dict[str, Estimate] = {}
    for other in transfer_tasks(study, spec.task):
        pair = paired_scores(study, done, other.name, "report")
        if pair is not None:
            transfer[other.name] = paired_estimate(*pair)
    return ArmSummary(
        label=spec.arm_label,
        task=spec.task,
        method=spec.method,
        rank=spec.rank,
        alpha=spec.alpha,
        lr=spec.lr,
        seeds=len(done),
        failed=sum(t.status in FAILED for t in trials),
        selection_score=_selection_score(study, done, spec.task),
        selection_forgetting=_selection_forgetting(study, done, spec.task),
        score=score,
        gain=gain,
        forgetting=forgetting,
        transfer=transfer,
        retention=retention,
        trainable_parameters=trained[0].trainable_parameters if trained else 0,
        seconds=float(np.mean([t.seconds for t in trained])) if trained else None,
    )


def _score_and_gain(
    study: StudyRecords, done: list[TrialRecords], task: str
) -> tuple[Estimate | None, Estimate | None]:
    found = [s for t in done if (s := study.items.get((t.spec.trial_id, task, "report")))]
    rows = _aligned(found) if found else np.empty((0, 0))
    score = score_estimate(rows) if rows.size else None
    pair = paired_scores(study, done, task, "report")
    return score, paired_estimate(*pair) if pair is not None else None


def _forgetting(
    study: StudyRecords, done: list[TrialRecords], task: str
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Mean fall over the tasks of one unit, and every retention task's change."""
    pairs = {}
    for other in study.tasks:
        if "retention" in other.roles and other.name != task:
            pair = paired_scores(study, done, other.name, "report")
            if pair is not None:
                pairs[other.name] = pair
    retention = {name: paired_estimate(*pair) for name, pair in pairs.items()}
    counted = [pairs[t.name] for t in retention_tasks(study, task) if t.name in pairs]
    return (negated(mean_paired_estimate(counted)) if counted else None), retention


def _selection_score(study: StudyRecords, done: list[TrialRecords], task: str) -> float | None:
    found = [s for t in done if (s := study.items.get((t.spec.trial_id, task, "selection")))]
    rows = _aligned(found) if found else np.empty((0, 0))
    return float(rows.mean()) if rows.size else None


def _selection_forgetting(study: StudyRecords, done: list[TrialRecords], task: str) -> float | None:
    falls = []
    for other in retention_tasks(study, task):
        pair = paired_scores(study, done, other.name, "selection")
        if pair is not None:
            falls.append(float(pair[1].mean() - pair[0].mean()))
    return float(np.mean(falls)) if falls else None


def pareto_front(arms: Sequence[ArmSummary]) -> list[bool]:
    """Which arms no other arm beats in score, forgetting and trainable parameters together.

    Report split. Forgetting counts only where every scored arm has it.
    """
    scored = [a for a in arms if a.score is not None]
    all_retained = all(a.forgetting is not None for a in scored)

    def losses(arm: ArmSummary) -> tuple[float, float, float]:
        score = arm.score.value if arm.score else 0.0
        forgetting = arm.forgetting.value if arm.forgetting and all_retained else 0.0
        return -score, forgetting, float(arm.trainable_parameters)

    points = [losses(a) for a in scored]
    return [
        a.score is not None
        and not any(
            p != losses(a) and all(x <= y for x, y in zip(p, losses(a), strict=True))
            for p in points
        )
        for a in arms
    ]
