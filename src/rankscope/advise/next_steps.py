"""What would make an answer surer: the next trials by what they are worth per minute, and the
runs and repairs that no probability knows of."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf

import numpy as np

from rankscope.advise.arms import Arm
from rankscope.advise.checks import NEXT_RATE
from rankscope.advise.decide import Answer
from rankscope.advise.evidence import axes_of
from rankscope.advise.messages import capitalized
from rankscope.advise.results import TaskResults, expected
from rankscope.advise.value import Untried, value_of_items, values_of_trials, with_untried
from rankscope.formatting import POINTS, amount, count, duration
from rankscope.records import TrialRecords, finished_trials

FEWEST_TRIED = 3  # Values of an axis from which a further one is priced
MOST_SUGGESTED = 5
WORTH_NAMING = 0.05  # Least fall of the regret that is named, in margins


def next_steps(results: TaskResults, answer: Answer) -> tuple[str, ...]:
    """Everything that would help and is worth naming."""
    steps = list(_runs(results))
    if answer.regret is not None:
        # As in ``TaskResults.fit_failed``: no trial has a price then.
        with suppress(FloatingPointError, np.linalg.LinAlgError):
            steps += list(_priced(results))
    return tuple(steps)


def _priced(results: TaskResults) -> Iterator[str]:
    """The trials worth most per minute, then more items, whose labels have another price."""
    evidence, margin, unit = results.evidence, results.margin, results.net_unit
    if evidence is None or results.posterior is None:
        return
    regret = float(results.posterior.regret.min())

    def regret_after(value: float) -> str:
        return f"expected regret {amount(regret, unit)} to {amount(max(0.0, regret - value), unit)}"

    room = inf  # Above 100 % there is nothing, which the posterior does not know
    if results.unit == POINTS and results.scale.name in ("points", "unmeasured"):
        bases = {part.task: results.base_score(part.task) or 0.0 for part in results.scale.parts}
        room = sum(part.weight * (1 - bases[part.task]) for part in results.scale.parts)
        room -= expected(results.candidates[0].summary).net
    arms = [results.arms[i] for i in results.allowed]
    untried = _untried(results, arms)
    whole = with_untried(evidence, [arm for _, arm, _ in untried], margin)
    values = values_of_trials(whole, margin, len(untried)).tolist()
    trials = [
        (f"Another seed of {arm.summary.label}", arm.summary.seconds, regret_after(value), value)
        for arm, value in zip(arms, values, strict=False)
    ]
    trials += [
        (text, seconds, f"expected to raise the best net gain by {amount(value, unit)}", value)
        for (text, _, seconds), by_trial in zip(untried, values[len(arms) :], strict=True)
        for value in [min(by_trial, room)]
    ]
    worth = [trial for trial in trials if trial[-1] >= WORTH_NAMING * margin]
    worth.sort(key=lambda trial: -trial[-1] / (trial[1] or 1.0))
    for text, seconds, effect, _ in worth[:MOST_SUGGESTED]:
        yield f"{text}: {duration(seconds)}, {effect}."
    items = value_of_items(evidence, margin)
    if items >= WORTH_NAMING * margin:
        yield f"Twice as many items: {regret_after(items)}."


def _untried(results: TaskResults, arms: Sequence[Arm]) -> list[tuple[str, Untried, float | None]]:
    """Ranks and rates beside those of the two best configurations: text, settings and seconds.

    Only along an axis with at least ``FEWEST_TRIED`` values: with fewer, how much a step may change
    is a guess of the prior's.
    """
    tried = [
        (spec.arm_without_rank, spec.rank, spec.alpha, axes_of(spec, arm.trials)[-1])
        for arm in arms
        if (spec := arm.trials[0].spec).lr > 0
    ]
    found = list[tuple[str, Untried, float | None]]()
    for arm in results.candidates[:2]:
        spec, points = arm.trials[0].spec, list[tuple[int | None, float]]()
        kind = spec.arm_without_rank
        if spec.lr <= 0:
            continue
        own = (kind, spec.rank, spec.alpha)
        if len({at for *settings, at in tried if tuple(settings) == own}) >= FEWEST_TRIED:
            points += [(spec.rank, spec.lr * factor) for factor in (NEXT_RATE, 1 / NEXT_RATE)]
        if spec.rank and len({r for k, r, *_ in tried if k == kind}) >= FEWEST_TRIED:
            ranks = (spec.rank // 2, spec.rank * 2)
            points += [(r, spec.lr) for r in ranks if 1 <= r <= results.hidden_size_rank]
        for rank, lr in points:
            alpha = spec.alpha and spec.alpha * (rank or 1) / (spec.rank or 1)
            beside = spec.model_copy(update={"rank": rank, "alpha": alpha, "lr": lr})
            axes = axes_of(beside, arm.trials)
            if any((k, r) == (kind, rank) and abs(at - axes[-1]) < 0.2 for k, r, _, at in tried):
                continue
            name = f"r={rank}" if rank is not None else capitalized(arm.summary.short_label)
            if rank and alpha and alpha != 2 * rank:
                name += f" alpha={alpha:g}"
            text = f"{name} at a rate of {lr:.2g}"
            found.append((text, (spec.kind, axes), arm.summary.seconds))
    return found


def _runs(results: TaskResults) -> Iterator[str]:
    if results.waiting:
        waiting = count(results.waiting, "trial")
        yield f"Run the study again: it continues with the remaining {waiting}."
    budget, over_budget = results.study.config.budget, len(results.over_budget)
    if over_budget and budget is not None:
        yield (
            f"Raise the budget ({budget.text}) and run the study again: "
            f"{count(over_budget, 'trial')} that the answer asks for did not fit in it. What was "
            "trained is kept."
        )
    if not finished_trials(results.trials):
        yield from _after_failures(results)


def _after_failures(results: TaskResults) -> Iterator[str]:
    diverged, oom, failed = (
        [t for t in results.failed if t.status == status]
        for status in ("diverged", "oom", "failed")
    )
    if diverged:
        lr = min(t.spec.lr for t in diverged) / 10
        trials = count(len(diverged), "trial")
        yield f"{trials} diverged: try a learning rate of {lr:.3g} or less."
    if oom:
        settings, trials = _less_memory(results, oom), count(len(oom), "trial")
        yield f"{trials} ran out of memory: try {settings}, and run again with --retry oom."
    if failed:
        first = failed[0]
        why = (first.failure or "no reason recorded").rstrip(".")
        yield (
            f"{count(len(failed), 'trial')} ended in an error, first {first.spec.arm_label} "
            f"seed={first.spec.seed} ({why}): fix its cause, and run again with --retry failed."
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
