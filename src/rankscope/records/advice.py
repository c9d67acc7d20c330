"""The recommendation: what ``advise`` decides and ``report`` shows."""

from typing import Literal

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
    n: int
    """Items."""
    seeds: int


class ArmSummary(Record):
    """One arm point over its seeds, as the advice sees it (report split unless said)."""

    label: str
    task: str
    method: str
    rank: int | None
    alpha: float | None
    lr: float
    seeds: int
    failed: int
    """Trials that did not finish."""
    selection_score: float | None
    """In-domain, selection split: what choosing looks at."""
    selection_forgetting: float | None
    """Mean fall over retention tasks against the base, selection split; positive = forgot."""
    score: Estimate | None
    """In-domain."""
    gain: Estimate | None
    """In-domain minus base."""
    forgetting: Estimate | None
    """Base minus tuned, mean over retention tasks; positive = forgot."""
    transfer: dict[str, Estimate]
    """Other tasks: tuned minus base."""
    retention: dict[str, Estimate]
    """Retention tasks one by one: tuned minus base."""
    trainable_parameters: int
    seconds: float | None
    """Mean training time of one trial."""
    on_pareto_front: bool = False

    @property
    def is_full(self) -> bool:
        """Full fine-tuning."""
        return self.method == "full"

    @property
    def is_lora(self) -> bool:
        """LoRA or its kin, which a rank sweep compares; no other method of PEFT's."""
        return self.method not in ("full", "peft")

    @property
    def short_label(self) -> str:
        """For a mark in a figure: ``r=8``, ``full``, ``vera``."""
        return f"r={self.rank}" if self.is_lora else self.label.split()[0]


class Reason(Record):
    """One sentence of the advice with the numbers behind it."""

    kind: Literal["gain", "full", "forgetting", "transfer", "cost", "choice", "sign", "limit"]
    text: str
    values: dict[str, float] = {}


Decision = Literal["use", "do_not_fine_tune", "use_full", "not_decided"]


class TaskAdvice(Record):
    """The recommendation for one training task."""

    task: str
    decision: Decision
    confidence: Literal["firm", "tentative", "none"]
    headline: str
    """The answer in one sentence."""
    chosen: ArmSummary | None
    reasons: tuple[Reason, ...]
    arms: tuple[ArmSummary, ...]
    subject_label: str | None = None
    """Of the arm that headline and reasons speak of; None where they speak of none."""
    best_full_label: str | None = None
    """Of full fine-tuning at the rate of the highest utility on the selection split."""
    best_lora_label: str | None = None
    """Of the LoRA arm of the highest utility on the selection split."""


class Recommendation(Record):
    """``recommendation.json``: one answer per training task."""

    study: str
    advice: tuple[TaskAdvice, ...]
    method: str
    """How the choice was made, one paragraph."""
    mitigation: tuple[TaskMitigation, ...] = ()
    """Trials made milder at inference, and mitigations beside them, where the study has any."""
