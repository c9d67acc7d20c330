"""Known failure patterns in the results, each with the next step to try."""

from collections.abc import Iterator
from math import ceil, log2

from rankscope.advise.arms import Arm
from rankscope.advise.decide import LIKELY_ENOUGH
from rankscope.advise.messages import arm_name
from rankscope.advise.results import TaskResults
from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.significance import ALPHA
from rankscope.formatting import POINTS, amount, count, difference, score_text
from rankscope.records import Estimate, TrainRecord

SATURATED = 0.95  # Base accuracy from which little is left to gain
NEGATIVE_TRANSFER = 0.10
"""Relative fall on another task that counts as negative transfer (arXiv 2512.15634)."""
OVER_FORGETTING = 0.5  # Forgetting as a share of the gain from which it is reported
MORE_CAPACITY = 100
"""Trainable parameters per training token above which an adapter could memorize the tokens; the
capacity rule asks for one."""


def diagnostics(results: TaskResults, subject: Arm | None) -> Iterator[str]:
    """Every pattern that the task's arms, or ``subject``, show."""
    yield from _worse_than_base(results)
    yield from _saturated(results)
    if subject is not None and subject.summary.trains:
        yield from _negative_transfer(results, subject)
        yield from _over_forgetting(results, subject)
        yield from _capacity(results, subject)
    yield from _flat_in_rank(results)


def _worse_than_base(results: TaskResults) -> Iterator[str]:
    arms = [arm.summary for arm in results.arms if arm.summary.trains]
    gains = [(arm, arm.gain) for arm in arms if arm.gain is not None]
    worse = [(arm, gain) for arm, gain in gains if gain.value < 0 and _is_significant(gain)]
    if not worse:
        return
    arm, gain = min(worse, key=lambda pair: pair[1].value)
    yield (
        f"{len(worse)} of {count(len(gains), 'arm')} are worse than the base on {results.task} "
        f"(significant after Holm's correction for all arms and tasks). The worst, "
        f"{arm_name(arm)}, scores {amount(gain.value, results.unit)} less. Next: a lower learning "
        "rate than those tried, fewer steps, and a check of prompts and labels."
    )


def _saturated(results: TaskResults) -> Iterator[str]:
    base = results.base_score(results.task)
    if results.unit == POINTS and base is not None and base >= SATURATED:
        yield (
            f"The base already scores {score_text(base, POINTS)} on {results.task}: at most "
            f"{amount(1 - base, POINTS)} are left to gain. Next: a harder task, or the base as it "
            "is."
        )


def _negative_transfer(results: TaskResults, subject: Arm) -> Iterator[str]:
    units = {t.name: t.score_unit for t in results.study.tasks}
    for name, change in subject.summary.transfer.items():
        base = results.base_score(name)
        if units[name] != "accuracy" or not base:
            continue
        relative = change.value / base
        if relative < -NEGATIVE_TRANSFER and _is_significant(change):
            yield (
                f"Negative transfer: {name} falls by {amount(change.value, POINTS)}, "
                f"{-100 * relative:.0f} % of the base's {score_text(base, POINTS)}. Next: scale "
                "the update down at inference, a smaller rank or learning rate, or training on "
                "both tasks."
            )


def _over_forgetting(results: TaskResults, subject: Arm) -> Iterator[str]:
    arm = subject.summary
    forgetting = arm.forgetting
    if forgetting is None or arm.gain is None:
        return
    least = None if arm.expected is None else arm.expected.forgetting_low
    if not (forgetting.is_above(0) or (least is not None and least > 0)):
        return
    tasks = retention_tasks(results.study, results.task)
    scores = [b for t in tasks if (b := results.base_score(t.name))]
    relative = 0.0
    if scores and results.retention_unit == POINTS:
        relative = forgetting.value / (sum(scores) / len(scores))
    half_of_gain = results.unit == results.retention_unit and (
        forgetting.value >= OVER_FORGETTING * max(arm.gain.value, 0.0)
    )
    if half_of_gain or relative > NEGATIVE_TRANSFER:
        yield (
            f"Over-forgetting: {arm_name(arm)} loses "
            f"{amount(forgetting.value, results.retention_unit)} on the retention tasks for "
            f"{difference(arm.gain.value, results.unit)} on {results.task}. Next: scale the update "
            "down at inference (no training needed), then a lower learning rate, fewer steps, or "
            "general data among the training rows."
        )


def _capacity(results: TaskResults, subject: Arm) -> Iterator[str]:
    rank, parameters = subject.summary.rank, subject.summary.trainable_parameters
    ratio = parameters_per_token(results, subject)
    if ratio is None:
        return
    counted = f"{count(parameters, 'parameter')} for about {parameters / ratio:,.0f} answer tokens"
    if ratio < 1:
        can_grow = rank is None or rank < results.hidden_size_rank
        larger = "a larger rank, or " if can_grow else ""
        yield (
            f"The adapter is small for the data: {counted}; the capacity rule asks for one "
            f"parameter per token. Next: {larger}more target modules."
        )
    elif ratio > MORE_CAPACITY:
        smaller = 2 ** max(0, int(log2((rank or 1) / (ratio / MORE_CAPACITY))))
        hint = f" (r={smaller} by the capacity rule)" if rank and smaller < rank else ""
        kind = subject.trials[0].spec.arm_without_rank
        alike = [a for a in results.candidates if a.trials[0].spec.arm_without_rank == kind]
        lower = [a.summary for a in alike if rank and (a.summary.rank or 0) < rank]
        fall_short = lower and not any(
            arm.expected and arm.expected.p_within_margin >= LIKELY_ENOUGH for arm in lower
        )
        fewer = "" if fall_short else f"a smaller rank{hint}, "
        yield (
            f"The adapter is large for the data: {counted} ({ratio:,.0f} to one), enough to "
            f"memorize them. Next: {fewer}fewer epochs, dropout, or more rows."
        )


def parameters_per_token(results: TaskResults, subject: Arm) -> float | None:
    """Trainable parameters of an adapter per labeled training token; None if unknown."""
    trained = [t.train for t in subject.trials if t.train is not None]
    parameters = subject.summary.trainable_parameters
    if subject.summary.is_full or not trained or not parameters:
        return None
    if trained[0].rewards:  # Its answers are its own
        return None
    tokens = _label_tokens(results, trained[0], subject)
    return None if tokens is None else parameters / tokens


def _label_tokens(results: TaskResults, train: TrainRecord, subject: Arm) -> float | None:
    """Labeled tokens of the training rows, each counted once; None if unknown."""
    if train.rows < 1:
        return None
    protocol = results.study.config.train.model_copy(update=subject.trials[0].spec.overrides)
    rows_per_step = protocol.batch_size * protocol.gradient_accumulation
    # The last step of an epoch may be short: no step spans two.
    passes = max(1.0, train.steps / ceil(train.rows / rows_per_step))
    tokens = train.num_label_tokens / passes
    return tokens if tokens >= 1 else None


def _flat_in_rank(results: TaskResults) -> Iterator[str]:
    """Whether the smallest and the largest rank of the widest series are alike."""
    pairs = [c for c in results.comparisons if c.kind == "ranks"]
    ranks = {a.summary.label: a.summary.rank or 0 for a in results.arms}
    widest = max(pairs, key=lambda c: ranks[c.first_label] - ranks[c.second_label], default=None)
    margin = results.margin
    nets = [a.summary.expected.net for a in results.candidates if a.summary.expected is not None]
    is_flat = bool(nets) and max(nets) - min(nets) < margin  # No rank between them stands out
    if widest is not None and is_flat and -margin < widest.low and widest.high < margin:
        yield (
            f"From r={ranks[widest.second_label]} to r={ranks[widest.first_label]} the "
            f"{results.net_name} moves by less than {amount(margin, results.net_unit)} (95 % "
            "interval): on this task the rank hardly matters. Next: take the smallest rank and "
            "tune the learning rate."
        )


def _is_significant(change: Estimate) -> bool:
    return change.p_holm is not None and change.p_holm < ALPHA
