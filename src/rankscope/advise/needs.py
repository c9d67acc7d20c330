"""What would decide an open question, or make an answer firm: items, seeds, rates, runs."""

from collections.abc import Iterator, Mapping, Sequence

from rankscope.advise.case import Case
from rankscope.advise.limits import FIRM_SEEDS
from rankscope.advise.power import Enough, enough, items_needed
from rankscope.advise.summaries import Arm, retention_tasks
from rankscope.advise.wording import amount, count
from rankscope.records import Estimate, Need, TrialRecords

NEXT_RATE = 10**0.5
"""Factor to the next learning rate beyond the end of a list: half a power of ten."""
AGAIN = "run again with --retry-failed"
TYPICAL_DISCORDANCE = 0.1
"""Share of items on which two models differ, where nothing was measured."""


def needs_of(case: Case, subject: Arm | None) -> tuple[Need, ...]:
    """Everything that would help, with numbers; report split."""
    return (*_runs(case), *_seeds(subject), *_more_data(case, subject), *_rates(case, subject))


def enough_text(case: Case, arm: Arm) -> str:
    """How much more data would show the gain looked for, one or two sentences."""
    effect, found = _enough(case, arm)
    shown = f"a gain of {amount(effect, case.unit)}"
    if found is None:
        return (
            f"These items and seeds would show {shown} in four studies of five: more of them is "
            "not what is missing."
        )
    if found.items is not None and found.seeds is not None:
        return (
            f"About {found.items:,} report items would show {shown} with these seeds, or "
            f"{count(found.seeds, 'seed')} with these items."
        )
    if found.items is not None:
        unless = "if seeds varied no more"
        if _is_spread_unknown(arm.summary.gain):
            unless = (
                f"if models differed on {TYPICAL_DISCORDANCE:.0%} of them; how much these do is "
                "not known"
            )
        return f"About {found.items:,} report items would show {shown}, {unless}."
    if found.seeds is not None:
        return (
            f"{count(found.seeds, 'seed')} would show {shown}; more items alone would not, since "
            "the seeds differ by more than that."
        )
    if found.both is not None:
        items, seeds = found.both
        return (
            f"Neither more items nor more seeds alone would show {shown}: about {items:,} report "
            f"items and {count(seeds, 'seed')} together would."
        )
    return f"The seeds differ too much to show {shown} with any number of seeds worth training."


def _enough(case: Case, arm: Arm) -> tuple[float, Enough | None]:
    """The gain looked for, the margin or what was found if that is more, and what shows it.

    None where the items and seeds there are do so already.
    """
    gain = arm.summary.gain
    effect = case.objective.margin
    if gain is None or _is_spread_unknown(gain):
        found = Enough(items_needed(effect, TYPICAL_DISCORDANCE), None, None)
    else:
        effect = max(effect, gain.value)
        found = enough(gain, effect)
    return effect, None if gain is not None and _is_met(found, gain) else found


def _is_spread_unknown(gain: Estimate | None) -> bool:
    """Whether nothing says how much items and seeds vary."""
    if gain is None or gain.item_error is None:
        return True
    return not (gain.item_error or gain.seed_error)


def _is_met(found: Enough, gain: Estimate) -> bool:
    """Whether the items, or the seeds, that would show a gain are there."""
    return (found.items is not None and found.items <= gain.n) or (
        found.seeds is not None and found.seeds <= gain.seeds
    )


def _runs(case: Case) -> Iterator[Need]:
    if case.waiting:
        yield Need(
            kind="runs",
            text=f"{count(case.waiting, 'trial')} still to run: the same command continues.",
            values={"waiting": float(case.waiting)},
        )
    if not any(t.status == "done" for t in case.trials):
        yield from after_failures(case)
    if not retention_tasks(case.study, case.task):
        yield Need(
            kind="retention",
            text="Name a retention task: forgetting was not measured.",
        )


def after_failures(case: Case) -> Iterator[Need]:
    """What to change where every trial failed: one need for each way in which they did."""
    by_status = {
        s: [t for t in case.failed if t.status == s] for s in ("diverged", "oom", "failed")
    }
    if diverged := by_status["diverged"]:
        lower = min(t.spec.lr for t in diverged) / 10
        yield Need(
            kind="learning_rate",
            text=f"{count(len(diverged), 'trial')} diverged: try a learning rate of {lower:.3g} or "
            "less.",
            values={"diverged": float(len(diverged)), "lr": lower},
        )
    if short := by_status["oom"]:
        yield Need(
            kind="runs",
            text=f"{count(len(short), 'trial')} ran out of memory: try "
            f"{_less_memory(case, short)}, and {AGAIN}.",
            values={"oom": float(len(short))},
        )
    if broken := by_status["failed"]:
        first = broken[0]
        why = (first.failure or "no reason recorded").rstrip(".")
        yield Need(
            kind="runs",
            text=f"{count(len(broken), 'trial')} ended in an error, first {first.spec.arm_label} "
            f"seed={first.spec.seed} ({why}): mend its cause, and {AGAIN}.",
            values={"failed": float(len(broken))},
        )


def _less_memory(case: Case, short: Sequence[TrialRecords]) -> str:
    """Settings that take less; a pass is cut to one row and a pack to one trial before."""
    section = case.study.config.get("train")
    train = section if isinstance(section, Mapping) else {}
    untrained = [t.spec for t in short if t.train is None]
    steps = []
    if untrained:
        if not train.get("gradient_checkpointing"):
            steps.append("train.gradient_checkpointing: true")
        if any(spec.is_full for spec in untrained) and train.get("optimizer") != "adamw8bit":
            steps.append("train.optimizer: adamw8bit for full fine-tuning on CUDA")
        steps.append("a shorter train.max_length")
        if any(spec.rank is not None for spec in untrained):
            steps.append("a smaller rank")
    if len(untrained) < len(short):  # trained, then not scored
        steps.append("a smaller evaluate.batch_tokens")
    return ", ".join(steps[:-1]) + (" or " if steps[:-1] else "") + steps[-1]


def _seeds(subject: Arm | None) -> Iterator[Need]:
    if subject is not None and subject.summary.seeds < FIRM_SEEDS:
        missing = FIRM_SEEDS - subject.summary.seeds
        yield Need(
            kind="seeds",
            text=f"{count(missing, 'more seed')}: fewer than {FIRM_SEEDS} say little of how much "
            "training itself varies.",
            values={"seeds": float(FIRM_SEEDS), "missing": float(missing)},
        )


def _more_data(case: Case, subject: Arm | None) -> Iterator[Need]:
    """Items and seeds at which the open gain would be seen; none that are there already."""
    if subject is None or (subject.summary.gain is not None and _shown(case, subject)):
        return
    effect, found = _enough(case, subject)
    if found is None:
        return
    if found.items is not None:
        yield Need(
            kind="items",
            text=f"About {found.items:,} report items would show a gain of "
            f"{amount(effect, case.unit)}, if seeds varied no more.",
            values={"items": float(found.items), "effect": effect},
        )
    if found.seeds is not None:
        yield Need(
            kind="seeds",
            text=f"About {count(found.seeds, 'seed')} would show a gain of "
            f"{amount(effect, case.unit)} with the items there are.",
            values={"seeds": float(found.seeds), "effect": effect},
        )
    if found.items is None and found.seeds is None and found.both is not None:
        items, seeds = found.both
        yield Need(
            kind="items",
            text=enough_text(case, subject),
            values={"items": float(items), "seeds": float(seeds), "effect": effect},
        )


def _shown(case: Case, subject: Arm) -> bool:
    """Whether the arm's interval is clear of zero already."""
    gain = subject.summary.gain
    return gain is not None and (
        (gain.low is not None and gain.low > 0) or (gain.high is not None and gain.high < 0)
    )


def _rates(case: Case, subject: Arm | None) -> Iterator[Need]:
    """The next learning rate beyond the end of a list that the choice stands at."""
    own = next((c for c in case.choice.candidates if c.arm is subject), None)
    if own is None or subject is None:
        return
    lr = subject.summary.lr
    if len(own.lrs) == 1:
        low, high = lr / NEXT_RATE, lr * NEXT_RATE
        yield Need(
            kind="learning_rate",
            text=f"One learning rate was tried for it ({lr:g}): add {low:.2g} and {high:.2g}.",
            values={"lr": lr, "lower": low, "higher": high},
        )
    elif lr in (own.lrs[0], own.lrs[-1]):
        further = lr / NEXT_RATE if lr == own.lrs[0] else lr * NEXT_RATE
        yield Need(
            kind="learning_rate",
            text=f"The chosen learning rate, {lr:g}, is at the end of its list: add {further:.2g}.",
            values={"lr": lr, "next": further},
        )
