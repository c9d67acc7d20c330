"""Everything that the advice on one training task is drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankscope.advise.arms import FEWEST_LOSSES, Arm
from rankscope.advise.messages import Measured
from rankscope.advise.retention import (
    RetentionScale,
    forgot_as_trained,
    logprob_scale,
    retention_scale,
    retention_tasks,
    shown_scale,
)
from rankscope.advise.select import ArmChoice, Candidate
from rankscope.advise.statistics.estimates import clustered_standard_error
from rankscope.advise.statistics.matching import base_scores
from rankscope.advise.statistics.significance import ALPHA
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import NATS, POINTS, Unit, count, unit_of
from rankscope.records import (
    FAILED,
    FEWEST_SEEDS,
    OVER_BUDGET,
    ArmComparison,
    ArmSummary,
    Estimate,
    StudyRecords,
    TaskRecord,
    TrialRecords,
)

FEW_ITEMS = 20  # With fewer test items, an answer needs ``FEWEST_SEEDS`` seeds at least
FEWEST_STEPS = 20  # With fewer optimizer steps and a loss that still falls, arms cannot be compared


@dataclass(frozen=True, slots=True)
class TaskResults:
    """The arms of one training task, the choice among them, and what their numbers mean."""

    study: StudyRecords
    task: str
    arms: tuple[Arm, ...]
    choice: ArmChoice
    objective: ObjectiveConfig
    comparisons: tuple[ArmComparison, ...] = ()
    gain_p_by_label: Mapping[str, float] = field(default_factory=dict)
    """Label of an arm that may be recommended -> p of its gain, after Holm's correction."""
    num_tasks: int = 1  # Training tasks of the study

    @property
    def record(self) -> TaskRecord:
        return self.study.task(self.task)

    @property
    def unit(self) -> Unit:
        return unit_of(self.record.score_unit)

    @property
    def retention_unit(self) -> Unit:
        """Unit of forgetting; points if nothing measures it."""
        tasks = retention_tasks(self.study, self.task)
        return unit_of(tasks[0].score_unit) if tasks else POINTS

    @property
    def net_unit(self) -> Unit:
        """Unit of gain minus forgetting."""
        return self.unit if self.objective.in_domain else self.retention_unit

    @property
    def scale(self) -> RetentionScale:
        return retention_scale(self.study, self.task)

    @property
    def _shown_scale(self) -> RetentionScale:
        scale = self.scale
        return scale if scale.name == "gold_logprob" else shown_scale(self.study, self.task)

    def shown_forgetting(self, arm: ArmSummary) -> Measured | None:
        """What decides about forgetting: log-probabilities if they are weighed, else the score."""
        if self.scale.name == "gold_logprob":
            return (
                None if arm.weighed_forgetting is None else Measured(arm.weighed_forgetting, NATS)
            )
        return None if arm.forgetting is None else self.retained(arm.forgetting)

    @property
    def net_name(self) -> str:
        """What arms are compared by; the gain alone if forgetting has no weight."""
        return "net gain" if self.objective.retention and self.scale.tasks else "gain"

    def net(self, number: float | Estimate) -> Measured:
        """A net gain, or a difference of two, with its unit."""
        return Measured(number, self.net_unit)

    def score(self, number: float | Estimate) -> Measured:
        """A score of the training task, or a difference of scores, with its unit."""
        return Measured(number, self.unit)

    def retained(self, number: float | Estimate) -> Measured:
        return Measured(number, self.retention_unit)

    @property
    def trials(self) -> tuple[TrialRecords, ...]:
        return tuple(t for arm in self.arms for t in arm.trials)

    @property
    def failed(self) -> tuple[TrialRecords, ...]:
        return tuple(t for t in self.trials if t.status in FAILED)

    @property
    def over_budget(self) -> tuple[TrialRecords, ...]:
        """Trials of an adaptive study that the answer asked for, and the budget did not pay for."""
        return tuple(t for t in self.trials if t.status == "skipped" and t.failure == OVER_BUDGET)

    @property
    def waiting(self) -> int:
        return sum(t.status in ("planned", "trained") for t in self.trials)

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """Learning rates tried for an arm, ascending; empty unless its own was chosen."""
        return next((c.lrs for c in self.choice.candidates if c.arm is arm), ())

    def rival_kind(self, arm: Arm) -> Candidate | None:
        """The best LoRA arm for full fine-tuning, and the reverse."""
        return self.choice.best_lora if arm.summary.is_full else self.choice.best_full

    def is_shown_to_gain(self, arm: ArmSummary) -> bool:
        """Whether an arm that may be recommended beats the base significantly."""
        p = self.gain_p_by_label.get(arm.label)
        return arm.gain is not None and arm.gain.value > 0 and p is not None and p < ALPHA

    def is_firm(self, arm: ArmSummary) -> bool:
        """Three seeds, none failed, no trial to run, and few test rows seen in training."""
        return not self.weaknesses(arm)

    def weaknesses(self, arm: ArmSummary) -> list[str]:
        """What keeps an arm from being firm."""
        found = {
            f"it rests on {count(arm.seeds, 'seed')}": arm.seeds < FEWEST_SEEDS,
            f"{arm.failed} of its trials failed": arm.failed > 0,
            "not every trial has run": self.waiting > 0,
            "more than 1 % of the test rows are also in the training rows": (
                self.record.is_contaminated
            ),
        }
        return [text for text, applies in found.items() if applies]

    def forgot_as_trained(self, arm: ArmSummary, scale: RetentionScale | None = None) -> bool:
        """Whether an arm's several models, as they were trained, clearly forgot; without a
        ``scale``, on the scale that is shown.

        An interval over two seeds has one degree of freedom: models that lost 19 and 27 points may
        have one from -71 to +25, although each alone is clear of zero. It is right for what a new
        seed would lose, so it is quoted as it is; but a warning is about the models at hand, and
        more evidence of the same loss must not take it away.
        """
        trials = next(a for a in self.arms if a.summary.label == arm.label).finished
        return forgot_as_trained(self.study, trials, scale or self._shown_scale)

    def forgets_below_chance(self, arm: ArmSummary) -> bool:
        """Whether the base is not shown to be above chance on any retention task that is weighed by
        accuracy, so that accuracy shows nothing, and the right answers clearly lost
        log-probability."""
        weighed = self.scale.tasks if self.scale.measure == "score" else ()
        if not weighed or len(self.retention_at_chance) < len(weighed):
            return False
        in_nats = arm.logprob_forgetting
        return in_nats is not None and (
            in_nats.is_above(0) or self.forgot_as_trained(arm, logprob_scale(self.study, self.task))
        )

    def lacks_retention_scores(self, arm: ArmSummary) -> bool:
        """Whether forgetting counts in this study, but the arm's was not scored.

        The limit holds for the shown forgetting; the weighed one may need other scores.
        """
        if not retention_tasks(self.study, self.task):
            return False
        if self.objective.retention > 0 and arm.weighed_forgetting is None:
            return True
        return self.objective.max_forgetting is not None and arm.forgetting is None

    def is_settled(self, arm: ArmSummary) -> bool:
        """Whether forgetting is shown, or shown to be within the margin of none.

        The margin has the unit of the gain, as the weighed forgetting has.
        """
        weighed, margin = arm.weighed_forgetting, self.objective.margin
        shown = weighed if self.scale.name == "gold_logprob" else arm.forgetting
        if shown is not None and shown.is_clear_of_zero:
            return True
        if weighed is None or weighed.low is None or weighed.high is None:
            return False
        return -margin <= weighed.low and weighed.high <= margin

    def is_barely_trained(self, arm: Arm) -> bool:
        """Too few steps for a loss trend, or few steps and a loss that still falls."""
        if arm.steps < FEWEST_LOSSES:
            return arm.steps > 0
        trend = arm.loss_trend
        return arm.steps < FEWEST_STEPS and trend is not None and trend.is_falling

    @property
    def hidden_size_rank(self) -> int:
        """Upper bound of the useful ranks: one side of every target is the hidden size, or less."""
        return self.study.model.hidden_size

    @property
    def retention_at_chance(self) -> dict[str, tuple[float, int, float]]:
        """Retention tasks on which the base is not shown to be above chance: its score, the number
        of items, and the score of guessing."""
        found = {}
        for task in retention_tasks(self.study, self.task):
            scores = base_scores(self.study, task.name)
            error = clustered_standard_error(scores) if scores.size else None
            if task.score_unit == "accuracy" and error is not None:
                # Written answers are never right by guessing.
                base, chance = float(scores.mean()), task.chance or 0.0
                if base - 2 * error <= chance:
                    found[task.name] = (base, scores.size, chance)
        return found

    def base_score(self, task: str) -> float | None:
        scores = base_scores(self.study, task)
        return float(scores.mean()) if scores.size else None

    def changes_text(self, arm: ArmSummary) -> str:
        parts = []
        if arm.gain is not None:
            parts.append(f"{self.score(arm.gain):change} against the base")
        if (forgetting := self.shown_forgetting(arm)) is not None:
            parts.append(self._retention_text(arm, forgetting))
        return (" and ".join(parts) + self._net_text(arm)) or "not scored on the test split"

    def result_text(self, arm: ArmSummary) -> str:
        """The score, then the same as ``changes_text``."""
        if arm.score is None or arm.gain is None:
            return "its test score is missing"
        score, gain = self.score(arm.score), self.score(arm.gain)
        text = f"its score is {score:score}, {gain:change} against the base"
        if (forgetting := self.shown_forgetting(arm)) is None:
            return f"{text}; forgetting was not measured"
        return f"{text}, and {self._retention_text(arm, forgetting)}{self._net_text(arm)}"

    def _net_text(self, arm: ArmSummary) -> str:
        return "" if arm.net_gain is None else f": net gain {self.net(arm.net_gain):change}"

    def _retention_text(self, arm: ArmSummary, forgetting: Measured) -> str:
        if self.is_settled(arm):
            return f"retention changes by {forgetting:reverse}"
        if self.forgot_as_trained(arm):
            return f"retention changes by {forgetting:reverse}, a clear loss of the models trained"
        return f"retention may change by {forgetting:range}"
