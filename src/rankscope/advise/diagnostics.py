"""Known failure patterns in the results, each with the next step to try."""

from collections.abc import Iterator
from math import ceil, log2

from rankscope.advise.arms import Arm
from rankscope.advise.messages import Counted, Field, Measured, arm_name, message
from rankscope.advise.results import TaskResults
from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.significance import ALPHA
from rankscope.formatting import POINTS
from rankscope.records import AdviceMessage, Estimate, TrainRecord

SATURATED = 0.95  # Base accuracy from which little is left to gain
NEGATIVE_TRANSFER = 0.10
"""Relative fall on another task that counts as negative transfer (arXiv 2512.15634)."""
OVER_FORGETTING = 0.5  # Forgetting as a share of the gain from which it is reported
MORE_CAPACITY = 100
"""Trainable parameters per training token above which an adapter could memorize the tokens; the
capacity rule asks for one."""


def diagnostics(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    """Every pattern that the task's arms, or ``subject``, show."""
    yield from _worse_than_base(results)
    yield from _saturated(results)
    if subject is not None:
        yield from _negative_transfer(results, subject)
        yield from _over_forgetting(results, subject)
        yield from _capacity(results, subject)
    yield from _flat_in_rank(results)


def _worse_than_base(results: TaskResults) -> Iterator[AdviceMessage]:
    gains = [(a.summary, a.summary.gain) for a in results.arms if a.summary.gain is not None]
    worse = [(arm, gain) for arm, gain in gains if gain.value < 0 and _is_significant(gain)]
    if not worse:
        return
    arm, gain = min(worse, key=lambda pair: pair[1].value)
    yield message(
        "diagnostic",
        "{worse} of {arms} are worse than the base on {task} (significant after Holm's correction "
        "for all arms and tasks). The worst, {arm}, scores {worst_gain:amount} less. Next: a "
        "learning rate below {lowest_lr:g}, fewer steps, and a check of prompts and labels.",
        worse=len(worse),
        arms=Counted(len(gains), "arm"),
        task=results.task,
        arm=arm_name(arm),
        worst_gain=results.score(gain.value),
        lowest_lr=min(a.lr for a, _ in gains),
    )


def _saturated(results: TaskResults) -> Iterator[AdviceMessage]:
    base = results.base_score(results.task)
    if results.unit == POINTS and base is not None and base >= SATURATED:
        left = results.score(1 - base)
        yield message(
            "diagnostic",
            "The base already scores {base:score} on {task}: at most {left:amount} are left to "
            "gain. Next: a harder task, or the base as it is.",
            base=results.score(base),
            task=results.task,
            left=left,
        )


def _negative_transfer(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    units = {t.name: t.score_unit for t in results.study.tasks}
    for name, change in subject.summary.transfer.items():
        base = results.base_score(name)
        if units[name] != "accuracy" or not base:
            continue
        relative = change.value / base
        if relative < -NEGATIVE_TRANSFER and _is_significant(change):
            yield message(
                "diagnostic",
                "Negative transfer: {other} falls by {change:amount}, {percent} of the base's "
                "{base:score}. Next: scale the update down at inference, a smaller rank or "
                "learning rate, or training on both tasks.",
                relative=relative,
                other=name,
                change=Measured(change.value, POINTS),
                percent=f"{-100 * relative:.0f} %",
                base=Measured(base, POINTS),
                **{f"transfer.{name}": change.value},
            )


def _over_forgetting(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
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
        yield message(
            "diagnostic",
            "Over-forgetting: {arm} loses {forgetting:amount} on the retention tasks for "
            "{gain:change} on {task}. Next: scale the update down at inference (no training "
            "needed), then a lower learning rate, fewer steps, or general data among the training "
            "rows.",
            relative=relative,
            arm=arm_name(arm),
            task=results.task,
            forgetting=results.retained(forgetting.value),
            gain=results.score(arm.gain.value),
        )


def _capacity(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    rank, parameters = subject.summary.rank, subject.summary.trainable_parameters
    ratio = parameters_per_token(results, subject)
    if ratio is None:
        return
    tokens, shown = parameters / ratio, Counted(parameters, "parameter")
    if ratio < 1:
        can_grow = rank is None or rank < results.hidden_size_rank
        larger = "a larger rank, or " if can_grow else ""
        yield message(
            "diagnostic",
            "The adapter is small for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens; the capacity rule asks for one parameter per token. Next: {larger}more "
            "target modules.",
            ratio=ratio,
            parameters=shown,
            tokens=tokens,
            larger=larger,
        )
    elif ratio > MORE_CAPACITY:
        smaller = 2 ** max(0, int(log2((rank or 1) / (ratio / MORE_CAPACITY))))
        fields: dict[str, Field] = {"hint": ""}
        if rank and smaller < rank:
            fields = {"hint": f" (r={smaller} by the capacity rule)", "smaller_rank": smaller}
        yield message(
            "diagnostic",
            "The adapter is large for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens ({ratio:,.0f} to one), enough to memorize them. Next: a smaller rank{hint}, "
            "fewer epochs, dropout, or more rows.",
            parameters=shown,
            tokens=tokens,
            ratio=ratio,
            **fields,
        )


def parameters_per_token(results: TaskResults, subject: Arm) -> float | None:
    """Trainable parameters of an adapter per labeled training token; None if unknown."""
    trained = [t.train for t in subject.trials if t.train is not None]
    parameters = subject.summary.trainable_parameters
    if subject.summary.is_full or not trained or not parameters:
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


def _flat_in_rank(results: TaskResults) -> Iterator[AdviceMessage]:
    """Whether the smallest and the largest rank of the widest series are alike."""
    pairs = [c for c in results.comparisons if c.kind == "ranks"]
    ranks = {a.summary.label: a.summary.rank or 0 for a in results.arms}
    widest = max(pairs, key=lambda c: ranks[c.first_label] - ranks[c.second_label], default=None)
    margin = results.margin
    nets = [a.summary.expected.net for a in results.candidates if a.summary.expected is not None]
    is_flat = bool(nets) and max(nets) - min(nets) < margin  # No rank between them stands out
    if widest is not None and is_flat and -margin < widest.low and widest.high < margin:
        yield message(
            "diagnostic",
            "From r={low_rank} to r={high_rank} the {net} moves by less than {margin:amount} "
            "(95 % interval): on this task the rank hardly matters. Next: take the smallest rank "
            "and tune the learning rate.",
            low_rank=ranks[widest.second_label],
            high_rank=ranks[widest.first_label],
            net=results.net_name,
            margin=results.net(margin),
        )


def _is_significant(change: Estimate) -> bool:
    return change.p_holm is not None and change.p_holm < ALPHA
