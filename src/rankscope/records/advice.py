"""The recommendation, with the curves over strength and rank that it comes with."""

from typing import Literal

from rankscope.models.methods import get_method
from rankscope.records.estimate import Estimate
from rankscope.records.record import Record
from rankscope.records.scores import ModelScore
from rankscope.records.variants import VariantKind

FEWEST_SEEDS = 3  # With fewer, the spread between seeds is too uncertain for a firm answer


class ArmSummary(Record):
    """One arm point over its seeds; scores of the test split unless the name says otherwise."""

    label: str
    task: str
    method: str
    rank: int | None
    alpha: float | None
    lr: float
    special_settings: tuple[str, ...] = ()
    """Further settings that are not the default; the end of the label."""
    seeds: int
    failed: int  # Number of trials that ended without a result
    stopped: int = 0  # Trials that an adaptive study ended at a rung
    skipped: int = 0  # Trials that an adaptive study never began
    validation_score: float | None  # In-domain score on the validation split
    validation_gain: float | None = None
    """The same minus the base's on their common items; arms are chosen by it."""
    validation_forgetting: float | None
    """Mean loss over retention tasks on the validation split; positive = forgot."""
    validation_weighed_forgetting: float | None = None
    """The same on the scale on which it is weighed against the gain; arms are chosen by it."""
    score: Estimate | None  # In-domain score
    gain: Estimate | None  # In-domain score minus the base's
    forgetting: Estimate | None  # Base minus tuned, mean over retention tasks; positive = forgot
    weighed_forgetting: Estimate | None = None
    """``forgetting`` on the scale on which it is weighed against the gain."""
    net_gain: Estimate | None = None
    """``gain`` minus ``weighed_forgetting`` by the study's weights; None if forgetting has no
    weight or was not measured."""
    logprob_forgetting: Estimate | None = None
    """Fall of the log-probability of the right answer, among the answers offered if there are any,
    nats per token, mean over the retention tasks; positive = forgot. Weighed against a gain in
    nats, and all that is left if the base is not shown to be above chance."""
    transfer: dict[str, Estimate]  # By other task: tuned minus base
    retention: dict[str, Estimate]  # By retention task: tuned minus base
    trainable_parameters: int
    seconds: float | None  # Mean training time of one trial
    peak_memory_bytes: int | None = None
    """Largest peak of its trials' groups; adapters trained together share it."""
    on_pareto_front: bool = False
    """No other arm is better in score, ``weighed_forgetting`` and trainable parameters together."""

    @property
    def is_full(self) -> bool:
        return get_method(self.method).trains_base

    @property
    def is_lora(self) -> bool:
        """Whether it is one of the low-rank methods that a rank sweep compares."""
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
    "steps",
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

    kind: Literal["full", "ranks"]  # LoRA against full fine-tuning, or a rank against a smaller one
    first_label: str
    second_label: str
    difference: Estimate  # Score of the first minus score of the second


Decision = Literal["use", "do_not_fine_tune", "use_full", "not_decided"]
Confidence = Literal["firm", "tentative", "none"]  # ``none``: not shown, or not decided


class Claim(Record):
    """One of the two things that a recommendation says, with the evidence for it."""

    confidence: Confidence
    text: str  # One sentence
    estimate: Estimate | None = None
    """The difference that it rests on, test split; None if nothing was measured."""
    rival: str | None = None  # Label of the arm that is compared; None for the base


RowRole = Literal["recommended", "closest", "cheapest", "full", "lora"]
"""``closest``: the arm that an answer without a recommendation describes. ``cheapest``: fewest
trainable parameters of the arms whose utility is within the margin of the best. ``full``: the best
full fine-tuning arm. ``lora``: the best LoRA arm, if none of the others is one."""


class AnswerRow(Record):
    """One arm of the short table under the verdict."""

    roles: tuple[RowRole, ...]  # All that apply: the recommended arm is often the cheapest too
    arm: ArmSummary


CheckName = Literal[
    "seeds", "items", "retention", "contamination", "learning_rate", "loss", "trials"
]
CheckStatus = Literal["fine", "weak", "bad"]
"""``bad``: alone enough to keep the answer from being firm, or to make it worthless."""


class TrustCheck(Record):
    """One line of "can I trust this?"."""

    name: CheckName
    status: CheckStatus
    value: str  # The fact in a few words, such as ``3 seeds``
    text: str  # What it means, one short sentence
    values: dict[str, float] = {}  # The numbers of the text


ScaleName = Literal["unmeasured", "points", "nats", "gold_logprob", "relative"]


class ForgettingScale(Record):
    """How forgetting is weighed against the gain on one training task."""

    name: ScaleName
    """``points`` and ``nats``: as it is shown; ``gold_logprob``: by the right answers'
    log-probability; ``relative``: relative to the base's cross-entropy."""
    text: str  # The rule that was used, one sentence


class TaskAdvice(Record):
    """The recommendation for one training task."""

    task: str
    decision: Decision
    confidence: Confidence
    """Of the decision. A recommendation is firm only if both of its claims are."""
    verdict: str  # The answer in at most twelve words; its verb follows the confidence
    explanation: str  # What the verdict rests on, in one or two sentences with numbers
    forgetting_scale: ForgettingScale
    better_than_base: Claim  # The recommended arm is better than the base, net of forgetting
    best_choice: Claim  # No tried arm is better by more than the margin
    rows: tuple[AnswerRow, ...] = ()
    """Recommended arm, cheapest arm, best full fine-tuning; the best LoRA arm if none is one."""
    checks: tuple[TrustCheck, ...] = ()
    """What the answer's trustworthiness depends on, each fact once."""
    chosen: ArmSummary | None
    reasons: tuple[AdviceMessage, ...]
    """Reasons, then diagnostics and the caveats that no check states."""
    arms: tuple[ArmSummary, ...]
    arms_left_out: int = 0  # Arms that ``recommendation.json`` and the page leave out
    comparisons: tuple[ArmComparison, ...] = ()  # Each arm at the learning rate chosen for it
    next_steps: tuple[AdviceMessage, ...] = ()  # What would decide it, or make it firm
    subject_label: str | None = None
    """Of the arm that explanation and reasons describe; None if they describe none."""
    best_full_label: str | None = None
    """Of full fine-tuning at the rate of the highest utility on the validation split."""
    best_lora_label: str | None = None
    """Of the LoRA arm of the highest utility on the validation split."""
    candidate_labels: tuple[str, ...] = ()
    """Of every configuration at the learning rate chosen for it on the validation split."""

    @property
    def findings(self) -> list[AdviceMessage]:
        """Diagnostics and caveats; a page gives them a section of their own."""
        return [r for r in self.reasons if r.kind in ("diagnostic", "caveat")]

    @property
    def evidence(self) -> list[AdviceMessage]:
        """The other reasons."""
        return [r for r in self.reasons if r.kind not in ("diagnostic", "caveat")]


class SubjectChange(Record):
    """What one arm forgot of one subject of a retention task."""

    task: str  # Training task of the arm
    label: str  # Of the arm
    tested_on: str
    subject: str
    change: Estimate
    """Tuned minus base on the subject's test items; ``p_holm`` within the arm's subjects of all
    retention tasks."""


class ScaledPoint(Record):
    """An arm with its update scaled to one strength; means over seeds, shares of 1 or nats."""

    strength: float  # 0 is the base and 1 the arm as trained
    gain: float  # In-domain: tuned minus base, test split
    forgetting: float  # Base minus tuned, mean over retention tasks, test split; positive = forgot
    validation_gain: float
    validation_forgetting: float
    seeds: int


class ScalingCurve(Record):
    """One arm from the base to the trained model, by increasing strength."""

    label: str  # Label of the arm
    kind: VariantKind
    points: tuple[ScaledPoint, ...]
    chosen_strength: float  # The strength of the highest utility on the validation split


class MitigationComparison(Record):
    """A mitigation compared with the plain arm scaled down to the same in-domain score."""

    label: str  # The mitigated arm, or the arm and how its update is scaled
    plain: str  # Label of the arm whose scaling curve is the baseline
    gain: float  # In-domain gain, mean over the compared seeds
    forgetting: float
    baseline: float  # Forgetting of the plain arm scaled to the same gain, interpolated
    difference: Estimate
    """Forgetting minus baseline; negative is better than scaling. No interval and p below three
    seeds; ``p_holm`` over all comparisons of the training task."""
    beyond: int
    """Seeds whose gain the plain arm reaches at no strength. Their baseline is its forgetting at
    its largest gain, which favors the plain arm."""


class TaskMitigation(Record):
    task: str
    curves: tuple[ScalingCurve, ...]
    comparisons: tuple[MitigationComparison, ...]


CurveKind = Literal["trained", "nested", "truncated"]


class RankCurvePoint(Record):
    rank: int | None  # None: the area under the curve over log2 of the rank, by its width
    score: Estimate  # In-domain, test split
    forgetting: Estimate | None  # Base minus tuned, mean over retention tasks
    more_score: Estimate | None = None  # Than what was trained, on the same items
    more_forgetting: Estimate | None = None


class RankCurve(Record):
    kind: CurveKind
    rates: tuple[float, ...]  # Learning rates that were chosen
    points: tuple[RankCurvePoint, ...]  # By rising rank, the area last


class TaskRankCurves(Record):
    task: str
    curves: tuple[RankCurve, ...]  # Over the same ranks; what was trained first


class Recommendation(Record):
    """``recommendation.json``: one answer per training task."""

    study: str
    advice: tuple[TaskAdvice, ...]
    method: str  # How the choice was made, one paragraph
    base: dict[str, Estimate] = {}  # The base's score on every task, test split
    mitigation: tuple[TaskMitigation, ...] = ()
    """Trials scaled down at inference compared with mitigations, if the study has any."""
    rank_curves: tuple[TaskRankCurves, ...] = ()
    """Trained, nested and truncated ranks compared, by training task; if the study has any."""
    given: tuple[ModelScore, ...] = ()  # Scores of models that the study did not train
    subjects: tuple[SubjectChange, ...] = ()
    """Retention by subject for the arms that the advice compares."""
