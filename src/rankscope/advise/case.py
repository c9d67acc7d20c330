"""One training task's case: the records, the arms and what the validation split chose."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.select import ArmChoice
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.advise.statistics.significance import ALPHA
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import POINTS, Unit, unit_of
from rankscope.records import (
    BASE,
    FAILED,
    ArmComparison,
    ArmSummary,
    StudyRecords,
    TaskRecord,
    TrialRecords,
)


@dataclass(frozen=True, slots=True)
class Case:
    """What a decision and its reasons are made from."""

    study: StudyRecords
    task: str
    arms: tuple[Arm, ...]
    choice: ArmChoice
    objective: ObjectiveConfig
    """Of this task: forgetting that cannot be added to the gain has no weight."""
    comparisons: tuple[ArmComparison, ...] = ()
    tested: Mapping[str, float] = field(default_factory=dict)
    """Label of an arm that may be recommended -> p of its gain, Holm over all of the study."""
    num_tasks: int = 1
    """Training tasks of the study."""

    @property
    def record(self) -> TaskRecord | None:
        """The task as it was read; None where the study no longer holds it."""
        return next((t for t in self.study.tasks if t.name == self.task), None)

    @property
    def unit(self) -> Unit:
        """Of the training task's score."""
        return POINTS if self.record is None else unit_of(self.record.score_unit)

    @property
    def retention_unit(self) -> Unit:
        """Of forgetting; accuracy where nothing measures it."""
        tasks = retention_tasks(self.study, self.task)
        return unit_of(tasks[0].score_unit) if tasks else POINTS

    @property
    def net_unit(self) -> Unit:
        """Of gain less forgetting: that of the only one with a weight, or of both."""
        return self.unit if self.objective.in_domain else self.retention_unit

    @property
    def is_forgetting_apart(self) -> bool:
        """Whether the study weighs forgetting, and its unit is another than the gain's."""
        return self.objective.retention != self.study.config.objective.retention

    @property
    def trials(self) -> tuple[TrialRecords, ...]:
        """All trials of the task."""
        return tuple(t for arm in self.arms for t in arm.trials)

    @property
    def failed(self) -> tuple[TrialRecords, ...]:
        """Trials that did not finish and will not."""
        return tuple(t for t in self.trials if t.status in FAILED)

    @property
    def waiting(self) -> int:
        """Trials still to run."""
        return sum(t.status in ("planned", "trained") for t in self.trials)

    def is_shown_to_gain(self, arm: ArmSummary) -> bool:
        """Whether an arm that may be recommended gains by its test, Holm over all such arms."""
        p = self.tested.get(arm.label)
        return arm.gain is not None and arm.gain.value > 0 and p is not None and p < ALPHA

    def base_scores(self, task: str) -> ScoreArray:
        """The base's finite scores on the test split of ``task``, (N,); empty if not scored."""
        base = self.study.items.get((BASE, task, "test"))
        return np.empty(0) if base is None else base.scores[np.isfinite(base.scores)]

    def base_score(self, task: str) -> float | None:
        """Mean of ``base_scores``; None where there are none."""
        scores = self.base_scores(task)
        return float(scores.mean()) if scores.size else None
