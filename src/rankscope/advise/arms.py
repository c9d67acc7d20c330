"""Each arm over its seeds: gain, forgetting, transfer and cost, with intervals; test split.

Failed trials are counted in their arm. A trial without a score on some task is left out of that
task's estimate only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.advise.retention import mean_fall, retention_tasks
from rankscope.advise.statistics.estimates import weighted_estimate
from rankscope.advise.statistics.matching import compared_scores, mean_estimate, stored_scores
from rankscope.records import (
    FAILED,
    ArmSummary,
    Estimate,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    finished_trials,
    trained_parts,
)

STILL_FALLING = 0.05
"""Least fall of the training loss between thirds of the steps that counts, as a share of the loss
in the first third. A loss near zero may fall by a few percent of itself forever."""

FEWEST_LOSSES = 6  # Fewest recorded steps of a loss trend: two in each third


@dataclass(frozen=True, slots=True)
class _LossTrend:
    """Mean training loss over the first, the middle and the last third of the steps."""

    start: float
    before: float
    after: float
    error: float  # Standard error of the difference between the last two

    @property
    def fall(self) -> float:
        return self.before - self.after

    @property
    def is_falling(self) -> bool:
        return self.fall > STILL_FALLING * abs(self.start) and self.fall > 2 * self.error

    @property
    def has_settled(self) -> bool:
        return self.fall + self.error < STILL_FALLING * abs(self.start)


@dataclass(frozen=True, slots=True)
class Arm:
    """One grid point on one training task, with all its trials."""

    trials: tuple[TrialRecords, ...]
    summary: ArmSummary

    @property
    def finished(self) -> list[TrialRecords]:
        return finished_trials(self.trials)

    @property
    def has_begun(self) -> bool:
        return any(t.status not in ("planned", "skipped") for t in self.trials)

    @property
    def steps(self) -> int:
        """Fewest optimizer steps of its trained trials; 0 without any."""
        return min((t.train.steps for t in self.trials if t.train is not None), default=0)

    @property
    def loss_trend(self) -> _LossTrend | None:
        """Loss trend of its finished trials together; None with fewer than ``FEWEST_LOSSES``.

        It is also None if trials learn from rewards, because their loss means nothing by itself.
        """
        if any(t.train.rewards for t in self.finished if t.train is not None):
            return None
        curves = [[p.loss for p in t.train.losses] for t in self.finished if t.train is not None]
        if min(map(len, curves), default=0) < FEWEST_LOSSES:
            return None
        thirds = [len(losses) // 3 for losses in curves]
        first, middle, last = (
            np.concatenate([c[len(c) - k * n : len(c) - (k - 1) * n] for c, n in pairs])
            for k in (3, 2, 1)
            for pairs in [list(zip(curves, thirds, strict=True))]
        )
        error = float(np.hypot(middle.std(ddof=1), last.std(ddof=1)) / np.sqrt(len(last)))
        return _LossTrend(float(first.mean()), float(middle.mean()), float(last.mean()), error)

    def updated(self, **fields: object) -> "Arm":
        return Arm(self.trials, self.summary.model_copy(update=fields))


def summarize_arms(study: StudyRecords) -> dict[str, tuple[Arm, ...]]:
    """Summarize all arms by training task, in the order of the trials, with their Pareto fronts."""
    by_task: dict[str, list[Arm]] = {task.name: [] for task in study.tasks if task.trained_on}
    for trials in trials_by_arm(study.trials).values():
        task = trials[0].spec.task
        if task in by_task:  # a run that ended as it began may leave trials of an earlier task
            by_task[task].append(Arm(tuple(trials), summarize(study, trials)))
    return {
        task: tuple(
            arm.updated(on_pareto_front=on_front)
            for arm, on_front in zip(arms, pareto_front([a.summary for a in arms]), strict=True)
        )
        for task, arms in by_task.items()
    }


def _transfer_tasks(study: StudyRecords, trained: str) -> tuple[TaskRecord, ...]:
    """Return the tasks that measure the transfer of an arm trained on ``trained``."""
    trained_names = trained_parts(study.tasks, trained)
    return tuple(
        t
        for t in study.tasks
        if t.name not in trained_names and (t.trained_on or "cross_domain" in t.roles)
    )


def base_estimates(study: StudyRecords) -> dict[str, Estimate]:
    """Return the base's test score on every task, with its interval over items."""
    by_task = {t.name: stored_scores(study, None, t.name, "test") for t in study.tasks}
    return {name: e for name, models in by_task.items() if (e := mean_estimate(models)) is not None}


def trials_by_arm(trials: Iterable[TrialRecords]) -> dict[tuple[object, ...], list[TrialRecords]]:
    """Group trials by arm (every setting except the seed), in their order."""
    groups: dict[tuple[object, ...], list[TrialRecords]] = {}
    for trial in trials:
        groups.setdefault(trial.spec.arm, []).append(trial)
    return groups


def summarize(study: StudyRecords, trials: Sequence[TrialRecords]) -> ArmSummary:
    """Summarize an arm's trials; a single trial has intervals over items only."""
    spec = trials[0].spec
    done = finished_trials(trials)
    trained = [t.train for t in trials if t.train is not None]
    seconds = [record.seconds for record in trained]
    retained = retention_tasks(study, spec.task)
    names, others = {t.name for t in retained}, {t.name for t in _transfer_tasks(study, spec.task)}
    changes = {
        name: weighted_estimate([pair])
        for name in [t.name for t in study.tasks]
        if name in {spec.task, *names, *others}
        and (pair := compared_scores(study, done, name)) is not None
    }
    return ArmSummary(
        label=spec.arm_label,
        short_label=spec.short_label,
        task=spec.task,
        method=spec.method,
        rank=spec.rank,
        alpha=spec.alpha,
        lr=spec.lr,
        special_settings=spec.special_settings,
        seeds=len(done),
        failed=sum(t.status in FAILED for t in trials),
        score=mean_estimate(stored_scores(study, done, spec.task, "test")),
        gain=changes.get(spec.task),
        forgetting=mean_fall(study, done, retained),
        transfer={name: change for name, change in changes.items() if name in others},
        retention={name: change for name, change in changes.items() if name in names},
        trainable_parameters=trained[0].trainable_parameters if trained else 0,
        rows=(trained[0].rows or None) if trained else None,
        tokens_per_item=study.tokens_read(spec.trial_id, spec.task) if spec.prompt else None,
        system=spec.prompt.opening if spec.prompt else "",
        seconds=float(np.mean(seconds)) if any(seconds) else None,
        peak_memory_bytes=max((t.peak_memory_bytes for t in trained), default=0) or None,
    )


def pareto_front(arms: Sequence[ArmSummary]) -> list[bool]:
    """Say of each arm whether no other beats it in score, forgetting and trainable parameters
    together.

    Forgetting counts only if every scored arm has it.
    """
    falls = [None if a.forgetting is None else a.forgetting.value for a in arms]
    measured = all(fall is not None for a, fall in zip(arms, falls, strict=True) if a.score)
    points = np.full((len(arms), 3), np.inf)  # an arm without a score beats no other
    for point, arm, fall in zip(points, arms, falls, strict=True):
        if arm.score is not None:
            fall = fall if measured and fall is not None else 0.0
            point[:] = -arm.score.value, fall, arm.trainable_parameters
    beaten = [bool(((points <= p).all(axis=1) & (points < p).any(axis=1)).any()) for p in points]
    return [arm.score is not None and not b for arm, b in zip(arms, beaten, strict=True)]
