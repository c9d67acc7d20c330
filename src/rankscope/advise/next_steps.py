"""What would make an answer surer: the next trials by what they are worth per minute, and the
runs, tasks and repairs that no probability knows of."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import log2, log10

import numpy as np

from rankscope.advise.arms import Arm
from rankscope.advise.decide import Answer
from rankscope.advise.evidence import axes_of
from rankscope.advise.messages import Counted, message
from rankscope.advise.results import FEWEST_STEPS, TaskResults
from rankscope.advise.retention import retention_tasks
from rankscope.advise.value import Untried, value_of_items, values_of_trials, with_untried
from rankscope.formatting import duration
from rankscope.records import AdviceKind, AdviceMessage, TrialRecords, finished_trials

NEXT_RATE = 10**0.5
"""Factor to the next learning rate beyond the end of a list: half a power of ten."""
FEWEST_TRIED = 3  # Values of an axis from which a further one is priced
MOST_SUGGESTED = 5
WORTH_NAMING = 0.05  # Least fall of the regret that is named, in margins


def next_steps(results: TaskResults, answer: Answer) -> tuple[AdviceMessage, ...]:
    """Everything that would help and is worth naming."""
    steps = list(_runs(results))
    subject = answer.subject
    if subject is not None and results.is_barely_trained(subject):
        text = "Train at least {fewest_steps} steps, until the loss no longer falls."
        steps.append(message("steps", text, fewest_steps=FEWEST_STEPS))
    if subject is not None:
        steps += _one_rate(results, subject)
    if answer.regret is not None and results.evidence is not None:
        # As in ``TaskResults.fit_failed``: no trial has a price then.
        with suppress(FloatingPointError, np.linalg.LinAlgError):
            steps += list(_priced(results))
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A trial that could be trained next."""

    kind: AdviceKind
    text: str
    value: float  # Expected fall of the regret
    seconds: float | None


def _priced(results: TaskResults) -> Iterator[AdviceMessage]:
    """The trials worth most per minute, then more items, whose labels have another price."""
    evidence, margin = results.evidence, results.margin
    if evidence is None or results.posterior is None or not results.allowed:
        return
    regret = float(results.posterior.regret.min())
    arms = [results.arms[i] for i in results.allowed]
    untried = _untried(results, arms)
    whole = with_untried(evidence, [arm for _, arm, _ in untried], margin)
    values = values_of_trials(whole, margin, len(untried)).tolist()
    trials = [
        _Trial("seeds", f"another seed of {arm.summary.label}", value, arm.summary.seconds)
        for arm, value in zip(arms, values, strict=False)
    ]
    trials += [
        _Trial("arms", text, value, seconds)
        for (text, _, seconds), value in zip(untried, values[len(arms) :], strict=True)
    ]
    worth = [trial for trial in trials if trial.value >= WORTH_NAMING * margin]
    worth.sort(key=lambda trial: -trial.value / (trial.seconds or 1.0))
    for trial in worth[:MOST_SUGGESTED]:
        after = "expected to raise the best net gain by {gain:amount}"
        if trial.kind == "seeds":
            after = "expected regret {before:amount} to {after:amount}"
        yield message(
            trial.kind,
            "{what}: {time}, " + after + ".",
            what=trial.text,
            time=duration(trial.seconds),
            before=results.net(regret),
            after=results.net(max(0.0, regret - trial.value)),
            gain=results.net(trial.value),
        )
    items = value_of_items(evidence, margin)
    if items >= WORTH_NAMING * margin:
        yield message(
            "items",
            "Twice as many items: expected regret {before:amount} to {after:amount}.",
            before=results.net(regret),
            after=results.net(max(0.0, regret - items)),
            value=items,
        )


def _untried(results: TaskResults, arms: Sequence[Arm]) -> list[tuple[str, Untried, float | None]]:
    """Ranks and rates beside those of the two best configurations: text, settings and seconds.

    Only along an axis with at least ``FEWEST_TRIED`` values: with fewer, how much a step may change
    is a guess of the prior's.
    """
    tried = {(a.trials[0].spec.arm_without_rank, a.summary.rank, a.summary.lr) for a in arms}
    found = []
    for arm in results.candidates[:2]:
        spec, points = arm.trials[0].spec, list[tuple[int | None, float]]()
        kind = spec.arm_without_rank
        if spec.lr <= 0:
            continue
        if len({lr for k, r, lr in tried if (k, r) == (kind, spec.rank)}) >= FEWEST_TRIED:
            points += [(spec.rank, spec.lr * factor) for factor in (NEXT_RATE, 1 / NEXT_RATE)]
        if spec.rank and len({r for k, r, _ in tried if k == kind}) >= FEWEST_TRIED:
            ranks = (spec.rank // 2, spec.rank * 2)
            points += [(r, spec.lr) for r in ranks if 1 <= r <= results.hidden_size_rank]
        _, ratio, rows, _ = axes_of(arm.trials)
        for rank, lr in points:
            if not any((k, r) == (kind, rank) and abs(log10(t / lr)) < 0.2 for k, r, t in tried):
                name = f"r={rank}" if rank is not None else arm.summary.short_label
                untried = Untried(spec.kind, (log2(rank or 1), ratio, rows, log10(lr)))
                found.append((f"{name} at a rate of {lr:.2g}", untried, arm.summary.seconds))
    return found


def _one_rate(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    """Rates beside the only one tried."""
    lr = subject.summary.lr
    if len(results.rates_of(subject)) == 1 and lr > 0:
        yield message(
            "learning_rate",
            "Only one learning rate was tried for it ({lr:g}): add {lower:.2g} and {higher:.2g}.",
            lr=lr,
            lower=lr / NEXT_RATE,
            higher=lr * NEXT_RATE,
        )


def _runs(results: TaskResults) -> Iterator[AdviceMessage]:
    if results.waiting:
        yield message(
            "runs",
            "Run the study again: it continues with the remaining {waiting}.",
            waiting=Counted(results.waiting, "trial"),
        )
    budget = results.study.config.budget
    if results.over_budget and budget is not None:
        over_budget = Counted(len(results.over_budget), "trial")
        yield message(
            "runs",
            "Raise the budget ({budget}) and run the study again: {over_budget} that the answer "
            "asks for did not fit in it. What was trained is kept.",
            over_budget=over_budget,
            budget=budget.text,
        )
    if not finished_trials(results.trials):
        yield from _after_failures(results)
    if not retention_tasks(results.study, results.task):
        yield message("retention", "Add a retention task to the study file.")


def _after_failures(results: TaskResults) -> Iterator[AdviceMessage]:
    diverged, oom, failed = (
        [t for t in results.failed if t.status == status]
        for status in ("diverged", "oom", "failed")
    )
    if diverged:
        lr = min(t.spec.lr for t in diverged) / 10
        yield message(
            "learning_rate",
            "{diverged} diverged: try a learning rate of {lr:.3g} or less.",
            diverged=Counted(len(diverged), "trial"),
            lr=lr,
        )
    if oom:
        settings = _less_memory(results, oom)
        yield message(
            "runs",
            "{oom} ran out of memory: try {settings}, and run again with --retry oom.",
            oom=Counted(len(oom), "trial"),
            settings=settings,
        )
    if failed:
        first = failed[0]
        yield message(
            "runs",
            "{failed} ended in an error, first {trial} ({why}): fix its cause, and run again with "
            "--retry failed.",
            failed=Counted(len(failed), "trial"),
            trial=f"{first.spec.arm_label} seed={first.spec.seed}",
            why=(first.failure or "no reason recorded").rstrip("."),
        )


def _less_memory(results: TaskResults, oom: Sequence[TrialRecords]) -> str:
    """Settings that need less memory. Smaller batches and groups were tried automatically."""
    train = results.study.config.train
    untrained = [t.spec for t in oom if t.train is None]
    steps = []
    if untrained:
        if not train.gradient_checkpointing:
            steps.append("train.gradient_checkpointing: true")
        if any(spec.is_full for spec in untrained) and train.optimizer != "adamw8bit":
            steps.append("train.optimizer: adamw8bit for full fine-tuning on CUDA")
        steps.append("a shorter train.max_length")
        if any(spec.rank is not None for spec in untrained):
            steps.append("a smaller rank")
    if len(untrained) < len(oom):  # these were trained, but not scored
        steps.append("a smaller evaluate.batch_tokens")
    return ", ".join(steps[:-1]) + (" or " if steps[:-1] else "") + steps[-1]
