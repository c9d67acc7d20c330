"""Time left of a whole study, at the pace of its groups in this run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rankscope.formatting import rough_duration
from rankscope.records import TrialSpec
from rankscope.run.groups import Group
from rankscope.run.prepared import PreparedStudy


@dataclass(slots=True)
class StudyClock:
    """Follows the groups of a run, and estimates the time left.

    A group takes time in proportion to its work in training, at the pace of groups that trained in
    this run and ended. Until there is one, only training counts, which is a lower bound.
    """

    work: dict[str, float]  # By trial of the groups that have not ended, its work in training
    clock: Callable[[], float] = time.monotonic
    train_seconds: float = 0.0  # Sum over all stages that trained and ended
    done_work: float = 0.0  # Trained in this run by groups that ended
    done_seconds: float = 0.0  # Sum over all stages of these groups
    _group: Group = ()
    _group_begun: float = 0.0
    _trained: float = 0.0
    _trained_before: float = 0.0
    _train_begun: float | None = None

    def begin_group(self, group: Group) -> None:
        self._group, self._group_begun = group, self.clock()
        self._trained = self._trained_before = 0.0

    def begin_training(self, trained_before: float) -> None:
        """Note that the group trains, from a checkpoint if a share of its steps was done before."""
        if not self._trained:  # otherwise a part of the group is trained again in this run
            self._trained_before = trained_before

    def begin_stage(self, stage: str) -> None:
        """Note that a stage of the group begins and the one before ends."""
        self.train_seconds = self._training_seconds()
        self._train_begun = self.clock() if stage.startswith("train") else None

    def _training_seconds(self) -> float:
        running = 0.0 if self._train_begun is None else self.clock() - self._train_begun
        return self.train_seconds + running

    def end_group(self) -> None:
        self.begin_stage("")
        if self._trained > self._trained_before:
            self.done_work += self._group_work() * (1 - self._trained_before)
            self.done_seconds += self.clock() - self._group_begun
        for trial in self._group:
            self.work.pop(trial.trial_id, None)
        self._group = ()

    def _group_work(self) -> float:
        return sum(self.work.get(trial.trial_id, 0.0) for trial in self._group)

    def seconds_left(self, trained: float = 0.0) -> tuple[float, bool] | None:
        """Return the seconds left, and whether only training is counted; None if nothing is known.

        ``trained`` is the share of the current group's training that is done, 0 to 1; the largest
        counts.
        """
        trained = self._trained = max(trained, self._trained)
        work, current = sum(self.work.values()), self._group_work()
        newly_trained = trained - self._trained_before
        if not self.done_work:
            if newly_trained <= 0:
                return None
            pace = self._training_seconds() / (current * newly_trained)
            return (work - current * trained) * pace, True
        pace = self.done_seconds / self.done_work
        took = self.clock() - self._group_begun if self._group else 0.0
        left = pace * current * (1 - self._trained_before) - took
        if newly_trained > 0:  # a slower group takes longer than the study's pace says
            left = max(left, took * (1 - trained) / newly_trained)
        return pace * (work - current) + max(0.0, left), False

    def left_text(self, trained: float = 0.0) -> str:
        """Return ``2.1 h left of the study``.

        The text is empty if nothing is known, or if no training is left whose pace would tell how
        long its scores take.
        """
        seconds, training_alone = self.seconds_left(trained) or (0.0, True)
        if training_alone and seconds < 1:
            return ""
        least = "at least " if training_alone else ""
        return f"{least}{rough_duration(seconds)} left of the study"


def training_work(study: PreparedStudy, trial: TrialSpec) -> float:
    """Count the tokens that a trial trains on, times the passes of each: three if all weights
    train."""
    return study.own_tokens(trial) * (3 if trial.is_full else 2)
