"""Signs that something is off: known failure patterns, each with the next step to try."""

from collections.abc import Iterable
from math import log2

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.case import Case
from rankscope.advise.patterns import patterns
from rankscope.advise.statistics.significance import ALPHA
from rankscope.advise.wording import settings
from rankscope.formatting import POINTS, amount, count, score_text
from rankscope.records import Reason, TrainRecord

SATURATED = 0.95
"""Base accuracy from which little is left to gain."""
NEGATIVE_TRANSFER = 0.10
"""Relative fall on another task that counts as negative transfer (arXiv 2512.15634)."""
OVER_FORGETTING = 0.5
"""Share of what was gained that, forgotten elsewhere, is named."""
MORE_CAPACITY = 100
"""Trainable parameters for each token trained on above which an adapter could learn them by heart;
the capacity rule asks for one."""


def signs(case: Case, subject: Arm | None) -> list[Reason]:
    """Worse than the base, saturated base, negative transfer, forgetting, capacity, ranks."""
    own: list[Reason] = []
    if subject is not None:
        own = [
            *_negative_transfer(case, subject),
            *_over_forgetting(case, subject),
            *_capacity(case, subject),
        ]
    return [*_worse_than_base(case), *_saturated(case), *own, *patterns(case)]


def _sign(text: str, **values: float) -> Reason:
    return Reason(kind="sign", text=text, values=values)


def _worse_than_base(case: Case) -> Iterable[Reason]:
    gains = [(a.summary, a.summary.gain) for a in case.arms if a.summary.gain is not None]
    worse = [
        (arm, gain)
        for arm, gain in gains
        if gain.value < 0 and gain.p_holm is not None and gain.p_holm < ALPHA
    ]
    if not worse:
        return
    arm, gain = min(worse, key=lambda pair: pair[1].value)
    lower = min(a.lr for a, _ in gains)
    yield _sign(
        f"{len(worse)} of {len(gains)} arms are worse than the base on {case.task} (Holm over all "
        f"arms and tasks); the worst, {settings(arm)}, by {amount(gain.value, case.unit)}. Next: a "
        f"learning rate below {lower:g}, fewer steps, and a look at prompts and labels.",
        worse=float(len(worse)),
        arms=float(len(gains)),
        worst_gain=gain.value,
        lowest_lr=lower,
    )


def _saturated(case: Case) -> Iterable[Reason]:
    if case.unit != POINTS:
        return
    base = case.base_score(case.task)
    if base is None or base < SATURATED:
        return
    yield _sign(
        f"The base already answers {score_text(base, case.unit)} of {case.task} right: at most "
        f"{amount(1 - base, case.unit)} are left to gain. Next: a harder task, or the base as it "
        "is.",
        base=base,
        left=1 - base,
    )


def _negative_transfer(case: Case, subject: Arm) -> Iterable[Reason]:
    units = {t.name: t.score_unit for t in case.study.tasks}
    for name, change in subject.summary.transfer.items():
        base = case.base_score(name)
        if units[name] != "accuracy" or not base or change.p_holm is None:
            continue
        if change.value / base < -NEGATIVE_TRANSFER and change.p_holm < ALPHA:
            yield Reason(
                kind="sign",
                text=f"Negative transfer: {name} falls by {amount(change.value, POINTS)}, "
                f"{-100 * change.value / base:.0f} % of the base's {score_text(base, POINTS)}. "
                "Next: scale the update down at inference, a smaller rank or rate, or training on "
                "both tasks.",
                values={
                    f"transfer.{name}": change.value,
                    "relative": change.value / base,
                    "base": base,
                },
            )


def _over_forgetting(case: Case, subject: Arm) -> Iterable[Reason]:
    """Clear forgetting that eats up half of the gain, or a tenth of what the base knew."""
    arm = subject.summary
    forgot = arm.forgetting
    if forgot is None or forgot.low is None or forgot.low <= 0 or arm.gain is None:
        return
    knew = [b for t in retention_tasks(case.study, case.task) if (b := case.base_score(t.name))]
    relative = forgot.value / (sum(knew) / len(knew)) if knew else 0.0
    one_unit = case.unit == case.retention_unit
    of_gain = one_unit and forgot.value >= OVER_FORGETTING * max(arm.gain.value, 0.0)
    if case.retention_unit != POINTS:
        relative = 0.0
    if not of_gain and relative <= NEGATIVE_TRANSFER:
        return
    yield _sign(
        f"Over-forgetting: {settings(arm)} loses {amount(forgot.value, case.retention_unit)} of "
        f"what the base knew for {amount(arm.gain.value, case.unit)} of gain. Next: scale the "
        "update down at inference (it costs no training), then a lower learning rate, fewer "
        "steps, or general data among the training rows.",
        forgetting=forgot.value,
        forgetting_low=forgot.low,
        gain=arm.gain.value,
        relative=relative,
    )


def _capacity(case: Case, subject: Arm) -> Iterable[Reason]:
    """The capacity rule: an adapter should have a parameter for each completion token."""
    trained = [t.train for t in subject.trials if t.train is not None]
    if subject.summary.is_full or not trained:
        return
    tokens = _label_tokens(case, trained[0], subject)
    parameters = subject.summary.trainable_parameters
    if tokens is None or not parameters:
        return
    ratio = parameters / tokens
    numbers = f"{count(parameters, 'parameter')} for about {tokens:,.0f} answer tokens"
    if ratio > MORE_CAPACITY:
        values = {"parameters": float(parameters), "tokens": tokens, "ratio": ratio}
        smaller = 2 ** max(0, int(log2((subject.summary.rank or 1) / (ratio / MORE_CAPACITY))))
        rank = subject.summary.rank
        hint = ""
        if rank and smaller < rank:
            hint = f"; r={smaller} would do by this rule"
            values["smaller_rank"] = float(smaller)
        yield _sign(
            f"The data are smaller than the adapter: {numbers} ({ratio:,.0f} to one), so it can "
            f"learn them by heart. Next: a smaller rank{hint}, fewer epochs, dropout, or more "
            "rows.",
            **values,
        )
    elif ratio < 1:
        yield _sign(
            f"The adapter is smaller than the data: {numbers}; the capacity rule asks for one "
            "each. Next: a larger rank, or more target modules.",
            parameters=float(parameters),
            tokens=tokens,
            ratio=ratio,
        )


def _label_tokens(case: Case, train: TrainRecord, subject: Arm) -> float | None:
    """Labelled tokens of the training rows, each counted once; None where it cannot be told."""
    if train.rows < 1:
        return None
    protocol = case.study.config.train.model_copy(update=subject.trials[0].spec.overrides)
    rows_per_step = protocol.batch_size * protocol.gradient_accumulation
    passes = max(1.0, train.steps * rows_per_step / train.rows)
    tokens = train.num_label_tokens / passes
    return tokens if tokens >= 1 else None
