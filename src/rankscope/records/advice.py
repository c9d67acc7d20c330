"""The recommendation: what ``advise`` decides and ``report`` shows."""

import math
from typing import Literal

from rankscope.models.methods import get_method
from rankscope.records.mitigation import TaskMitigation
from rankscope.records.record import Record


class Estimate(Record):
    """A difference or a mean with its uncertainty."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where it cannot be known."""
    high: float | None
    p: float | None = None
    """Two-sided p value where a test was made."""
    p_holm: float | None = None
    """The same within its family (Holm), where it belongs to one: gains of all arms on all training
    tasks; changes of one arm on all other tasks; comparisons of arms on all training tasks."""
    n: int
    """Items."""
    seeds: int
    clusters: int | None = None
    """Clusters of items (subjects, passages) that were resampled whole; None: items by
    themselves."""
    item_error: float | None = None
    """Standard error from which items were drawn; None where it cannot be known."""
    seed_error: float | None = None
    """Standard error from which seeds were trained; None with one seed. Of two seeds too large
    where seeds are alike: part of the answers' noise is left in it, see ``advise.statistics``."""

    @property
    def standard_error(self) -> float | None:
        """Of items and seeds together; with one seed, of items alone."""
        if self.item_error is None:
            return None
        return math.hypot(self.item_error, self.seed_error or 0.0)

    @property
    def is_clear_of_zero(self) -> bool:
        """Whether the 95 % interval is known and excludes zero."""
        return (self.low is not None and self.low > 0) or (self.high is not None and self.high < 0)


class ArmSummary(Record):
    """One arm point over its seeds, as the advice sees it (test split unless said)."""

    label: str
    task: str
    method: str
    rank: int | None
    alpha: float | None
    lr: float
    special_settings: tuple[str, ...] = ()
    """As the label ends: what else differs from the default."""
    seeds: int
    failed: int
    """Trials that did not finish."""
    validation_score: float | None
    """In-domain, validation split."""
    validation_gain: float | None = None
    """The same minus the base's on the items that both have: what choosing looks at."""
    validation_forgetting: float | None
    """Mean fall over retention tasks against the base, validation split; positive = forgot."""
    score: Estimate | None
    """In-domain."""
    gain: Estimate | None
    """In-domain minus base."""
    forgetting: Estimate | None
    """Base minus tuned, mean over retention tasks; positive = forgot."""
    text_forgetting: Estimate | None = None
    """Rise of the cross-entropy of held-out text against the base, nats per token, mean over the
    retention tasks scored so; positive = forgot."""
    transfer: dict[str, Estimate]
    """Other tasks: tuned minus base."""
    retention: dict[str, Estimate]
    """Retention tasks one by one: tuned minus base."""
    trainable_parameters: int
    seconds: float | None
    """Mean training time of one trial."""
    peak_memory_bytes: int | None = None
    """Largest of its trials' groups: adapters trained together share it."""
    on_pareto_front: bool = False
    """No other arm is better in score, ``forgetting`` and trainable parameters together."""
    on_text_front: bool = False
    """The same with ``text_forgetting``."""

    @property
    def is_full(self) -> bool:
        """Full fine-tuning."""
        return get_method(self.method).trains_base

    @property
    def is_lora(self) -> bool:
        """LoRA or its kin, which a rank sweep compares; no other method of PEFT's."""
        return get_method(self.method).has_rank

    @property
    def short_label(self) -> str:
        """For a mark in a figure: ``r=8``, ``full``, ``vera``."""
        return f"r={self.rank}" if self.is_lora else self.label.split()[0]


AdviceKind = Literal[
    "gain",
    "full",
    "forgetting",
    "transfer",
    "cost",
    "choice",
    "diagnostic",
    "caveat",
    "items",
    "seeds",
    "learning_rate",
    "runs",
    "retention",
]
"""Reasons for a decision, diagnostics, caveats; in the last line, kinds of next steps."""


class AdviceMessage(Record):
    """One sentence of the advice with the numbers behind it."""

    kind: AdviceKind
    text: str
    values: dict[str, float] = {}


class ArmComparison(Record):
    """Two arms of one training task on the same test items."""

    kind: Literal["full", "ranks"]
    """LoRA against full fine-tuning, or a rank against a smaller one."""
    first_label: str
    second_label: str
    difference: Estimate
    """Score of the first minus score of the second."""


Decision = Literal["use", "do_not_fine_tune", "use_full", "not_decided"]
Confidence = Literal["firm", "tentative", "none"]
"""``none``: not decided."""


class TaskAdvice(Record):
    """The recommendation for one training task."""

    task: str
    decision: Decision
    confidence: Confidence
    headline: str
    """The answer in one sentence."""
    chosen: ArmSummary | None
    reasons: tuple[AdviceMessage, ...]
    """Reasons, then diagnostics and caveats."""
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[ArmComparison, ...] = ()
    """Each arm at the learning rate chosen for it."""
    next_steps: tuple[AdviceMessage, ...] = ()
    """What would decide it, or make it firm."""
    subject_label: str | None = None
    """Of the arm that headline and reasons speak of; None where they speak of none."""
    best_full_label: str | None = None
    """Of full fine-tuning at the rate of the highest utility on the validation split."""
    best_lora_label: str | None = None
    """Of the LoRA arm of the highest utility on the validation split."""


class SubjectChange(Record):
    """What one arm forgot of one subject of a retention task."""

    task: str
    """Training task of the arm."""
    label: str
    """Of the arm."""
    tested_on: str
    subject: str
    change: Estimate
    """Tuned minus base on the subject's test items; ``p_holm`` within the arm's subjects of all
    retention tasks."""


class Recommendation(Record):
    """``recommendation.json``: one answer per training task."""

    study: str
    advice: tuple[TaskAdvice, ...]
    method: str
    """How the choice was made, one paragraph."""
    base: dict[str, Estimate] = {}
    """The base's score on every task, test split."""
    mitigation: tuple[TaskMitigation, ...] = ()
    """Trials made milder at inference, and mitigations beside them, where the study has any."""
    subjects: tuple[SubjectChange, ...] = ()
    """Retention subject by subject, of the arms that the advice compares."""
