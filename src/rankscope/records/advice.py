"""The stored recommendation: its answers, and the numbers and sentences behind them."""

from typing import Literal

from rankscope.models.methods import get_method
from rankscope.records.record import Estimate, Record
from rankscope.records.scores import ModelScore

FEWEST_SEEDS = 3  # With fewer, the spread between seeds is hardly known


class ExpectedChange(Record):
    """The posterior's expectation of one number, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> "ExpectedChange":
        return ExpectedChange(value=0.0 - self.value, low=0.0 - self.high, high=0.0 - self.low)


class ExpectedGain(Record):
    """The posterior's view of one arm, shrunk by all others; its raw scores are stored beside it.

    A net gain is the gain minus the forgetting, by the study's weights; the base has 0. One point
    counts as 0.01 nats per token. Probabilities are shares of the draws. An arm over the limit on
    forgetting cannot be chosen: it is best, or within the margin, with a probability of 0.
    """

    net: ExpectedChange
    changes: dict[str, ExpectedChange]
    """Score minus the base's by task: the training task and every retention task."""
    forgetting: ExpectedChange | None = None  # Mean fall over the retention tasks
    p_better: float  # Better than the base
    p_within_margin: float  # Within the margin of the best of all arms and the base
    p_best: float
    regret: float  # Expected net gain lost against the best
    p_over_limit: float | None = None  # Forgets more than the study allows; None without a limit


class ArmSummary(Record):
    """One arm point over its seeds; scores are those of the test split unless a name says
    otherwise."""

    label: str
    short_label: str  # Without settings: ``r=8``, ``full``, ``vera``
    task: str
    method: str
    rank: int | None
    alpha: float | None
    lr: float
    special_settings: tuple[str, ...] = ()
    """Further settings that differ from the default; they end the label."""
    seeds: int
    failed: int  # Number of trials that ended without a result
    score: Estimate | None  # In-domain score
    gain: Estimate | None  # In-domain score minus the base's
    forgetting: Estimate | None  # Base minus tuned, mean over retention tasks; positive = forgot
    transfer: dict[str, Estimate]  # By other task: tuned minus base
    retention: dict[str, Estimate]  # By retention task: tuned minus base
    trainable_parameters: int
    rows: int | None = None  # Training rows
    seconds: float | None  # Mean training time of one trial
    peak_memory_bytes: int | None = None
    """Largest peak of its trials' groups; adapters trained together share it."""
    tokens_per_item: float | None = None
    """Tokens read for an item of its task, if the arm is a prompt and the number is known."""
    system: str = ""  # First words of a prompt's system text
    on_pareto_front: bool = False
    """Whether no other arm is better in score, forgetting and trainable parameters together."""
    expected: ExpectedGain | None = None  # None if it has no score on some task that counts

    @property
    def is_full(self) -> bool:
        return get_method(self.method).trains_base

    @property
    def trains(self) -> bool:
        return get_method(self.method).trains

    @property
    def worst_loss(self) -> tuple[str, ExpectedChange] | None:
        """The retention task that falls most among those that surely fall, with its change."""
        changes = self.expected.changes if self.expected else {}
        lost = [(n, change) for n, change in changes.items() if n != self.task and change.high < 0]
        return min(lost, key=lambda pair: pair[1].value, default=None)

    @property
    def is_lora(self) -> bool:
        """Whether its method is one of the low-rank methods that a rank sweep compares."""
        return get_method(self.method).has_rank


AdviceKind = Literal["forgetting", "transfer", "axis", "diagnostic", "caveat"]


class AdviceMessage(Record):
    """One sentence of the advice."""

    kind: AdviceKind
    text: str


class ArmComparison(Record):
    """The net gain of one arm minus another's, by the posterior."""

    kind: Literal["full", "ranks"]  # LoRA against full fine-tuning, or a rank against a smaller one
    first_label: str
    second_label: str
    net: ExpectedChange  # Difference of the net gains
    gain: ExpectedChange  # Difference of the gains on the training task alone
    p_better: float  # The first has the higher net gain
    p_within_margin: float  # The first is at most the margin worse, in net gain
    p_gain_within_margin: float  # ``p_within_margin`` on the training task alone


Decision = Literal["use", "do_not_fine_tune", "use_full", "not_decided"]
Confidence = Literal["sure", "probable", "leaning", "none"]
"""Level by the probability of being within the margin of the best: at least 0.95, at least 0.80, or
less. An open check allows ``probable`` at most. ``none`` means not decided."""
SURE, PROBABLE = 0.95, 0.8
MAY_DO = 0.05  # Least probability of being within the margin of an arm that is named


def confidence_of(p: float) -> Confidence:
    return "sure" if p >= SURE else "probable" if p >= PROBABLE else "leaning"


RowRole = Literal["recommended", "closest", "smaller", "best", "full", "prompt", "lora"]
"""Reason why an arm has a row. ``closest``: an answer without a recommendation describes it.
``smaller``: the likeliest of the smaller ranks that may do as well. ``best``: the highest expected
net gain. ``full``, ``prompt``: the best of its kind. ``lora``: the best LoRA arm, if no other row
is one."""


class AnswerRow(Record):
    """One arm of the short table under the verdict."""

    roles: tuple[RowRole, ...]  # All that apply: the recommended arm is often the cheapest too
    arm: ArmSummary


CheckName = Literal[
    "retention",
    "contamination",
    "answers",
    "items",
    "learning_rate",
    "ranks",
    "loss",
    "seeds",
    "trials",
    "fit",
]
CheckStatus = Literal["fine", "weak", "bad"]
"""``weak``: the check is open, and could change the answer. ``bad``: nothing can be decided before
it is mended. The probabilities account for neither."""


class TrustCheck(Record):
    """A fact that the answer depends on."""

    name: CheckName
    status: CheckStatus
    value: str  # The fact in a few words, such as ``3 seeds``
    text: str  # Its meaning, one short sentence
    labels: tuple[str, ...] = ()  # Labels of the arms at an open end of their lists


class RankThatMayDo(Record):
    """A LoRA rank that is within the margin of the best with a probability of at least 0.05."""

    rank: int
    label: str  # Label of its arm with the highest expected net gain
    p: float  # Probability that this arm is within the margin of the best


class NextStep(Record):
    """A step that would make an answer surer, and the command that does it."""

    text: str
    command: str = ""  # Empty if no single command does it
    check: CheckName | None = None  # The open check that it settles; None if it settles none
    seconds: float | None = None  # Expected time of training; None if it is not known


class TaskAdvice(Record):
    """The recommendation for one training task."""

    task: str
    decision: Decision
    p_within_margin: float | None = None
    """Probability that the recommended choice, an arm or the base, is within the margin of the
    best. If every arm exceeds the limit on forgetting, it is the probability that even the one
    that forgets least does. None if nothing was scored."""
    p_better: float | None = None  # Probability that the recommended or closest arm beats the base
    confidence: Confidence = "none"
    expected_regret: float | None = None  # Net gain that it is expected to lose against the best
    verdict: str  # A headline such as ``Use LoRA rank 8.``
    summary: str  # The line below it: probability, gain and worst loss
    explanation: str  # Measurements of the arm that the verdict describes
    ranks_that_may_do: tuple[RankThatMayDo, ...] = ()  # By rising rank, the recommended one too
    rows: tuple[AnswerRow, ...] = ()
    checks: tuple[TrustCheck, ...] = ()
    """Facts that the answer's trustworthiness depends on, each once."""
    chosen: ArmSummary | None
    reasons: tuple[AdviceMessage, ...]
    """Reasons, then diagnostics and the caveats that no check states."""
    arms: tuple[ArmSummary, ...]
    arms_left_out: int = 0  # Arms that ``recommendation.json`` and the page leave out
    comparisons: tuple[ArmComparison, ...] = ()  # Each arm at the learning rate chosen for it
    next_steps: tuple[NextStep, ...] = ()  # Steps that would make the answer surer
    subject_label: str | None = None
    """Label of the arm that explanation and reasons describe; None without one."""
    best_full_label: str | None = None
    """Label of full fine-tuning at the rate of the highest expected net gain."""
    best_lora_label: str | None = None
    """Label of the LoRA arm with the highest expected net gain."""
    candidate_labels: tuple[str, ...] = ()
    """Labels of every configuration at its learning rate of the highest expected net gain."""

    @property
    def open_checks(self) -> list[TrustCheck]:
        """Checks that could change the answer."""
        return [check for check in self.checks if check.status != "fine"]

    @property
    def findings(self) -> list[AdviceMessage]:
        """Diagnostics and caveats, which have their own section on a page."""
        return [r for r in self.reasons if r.kind in ("diagnostic", "caveat")]

    @property
    def evidence(self) -> list[AdviceMessage]:
        """Reasons other than diagnostics and caveats."""
        return [r for r in self.reasons if r.kind not in ("diagnostic", "caveat")]


class Recommendation(Record):
    """Content of ``recommendation.json``: one answer per training task."""

    schema_version: int = 5  # 5: a line below the verdict
    study: str
    advice: tuple[TaskAdvice, ...]
    method: str  # How the choice was made, one paragraph
    base: dict[str, Estimate] = {}  # The base's score on every task, test split
    given: tuple[ModelScore, ...] = ()  # Scores of models that the study did not train
