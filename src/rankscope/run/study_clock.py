"""Time left of a whole study, from what its groups and stages took so far in this run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rankscope.formatting import rough_duration
from rankscope.records import TrialSpec
from rankscope.run.groups import Group
from rankscope.run.prepared import PreparedStudy
from rankscope.train.step_schedule import trial_steps

STAGES_OF = {"train": "training", "evaluate": "scoring", "variants": "scoring"}
"""How time is shared out; other stages go by their own names."""


@dataclass(slots=True)
class StudyClock:
    """Follows the groups of a run.

    Time left is proportional to the work of training, which the other stages of a group follow.
    Until a group has gone through all stages, it counts training alone, a lower bound.
    """

    work: Mapping[str, float]
    """By trial that is not done, its work in training."""
    clock: Callable[[], float] = time.monotonic
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, so far."""
    done_work: float = 0.0
    """Of the groups that are done."""
    _group: Group = ()
    _trained: float = 0.0
    _stage: str = ""
    _since: float = 0.0

    @classmethod
    def of(cls, study: PreparedStudy, done: frozenset[str]) -> "StudyClock":
        """A clock for the trials of a study that are not ``done``."""
        trials = [t for group in study.groups for t in group if t.trial_id not in done]
        return cls({trial.trial_id: training_work(study, trial) for trial in trials})

    def begin_group(self, group: Group) -> None:
        self._group, self._trained = group, 0.0

    def begin_stage(self, stage: str) -> None:
        """A stage of the group begins; the one before ends."""
        now = self.clock()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        first = stage.split()[0] if stage else ""
        self._stage, self._since = STAGES_OF.get(first, first), now

    def end_group(self) -> None:
        self.begin_stage("")
        self.done_work += self.group_work()
        self._group = ()

    def group_work(self) -> float:
        return sum(self.work.get(trial.trial_id, 0.0) for trial in self._group)

    def seconds_left(self, trained: float = 0.0) -> tuple[float, bool] | None:
        """Seconds left, and whether only training is counted; None if nothing is known yet.

        trained: share of the current group's training that is done, 0 to 1; the largest one counts.
        """
        trained = self._trained = max(trained, self._trained)
        running = self.clock() - self._since if self._stage else 0.0
        total, current = sum(self.work.values()), self.group_work()
        training = self.seconds.get("training", 0.0)
        if self.done_work:
            before = sum(self.seconds.values())
            share = training / before if before else 1.0
            done = self.done_work + current * trained * share
            return (total - done) * before / self.done_work, False
        if self._stage == "training" and trained:
            return (total / current - trained) * running / trained, True
        return None

    def left_text(self, trained: float = 0.0) -> str:
        """``2.1 h left of the study``; empty if nothing is known."""
        left = self.seconds_left(trained)
        if left is None:
            return ""
        seconds, training_alone = left
        least = "at least " if training_alone else ""
        return f"{least}{rough_duration(seconds)} left of the study"

    def shares_text(self) -> str:
        """``training 45 %, scoring 43 %, spectra 12 %``; empty before the second stage."""
        total = sum(self.seconds.values())
        shares = sorted(self.seconds.items(), key=lambda item: -item[1])
        return (
            ", ".join(f"{stage} {s / total:.0%}" for stage, s in shares) if len(shares) > 1 else ""
        )


def training_work(study: PreparedStudy, trial: TrialSpec) -> float:
    """Rows that a trial trains on, times the passes of each: three if every weight trains."""
    rows, train = study.rows[trial.task], study.config.train
    steps = trial_steps(trial, len(rows.rows), rows.num_tokens, train)
    batch = trial.batch_size or train.batch_size
    accumulation = trial.gradient_accumulation or train.gradient_accumulation
    mean_tokens = rows.num_tokens / len(rows.rows)
    return steps * batch * accumulation * mean_tokens * (3 if trial.is_full else 2)
