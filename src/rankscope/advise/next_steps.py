"""What would decide an open question, or make an answer firm: items, seeds, rates, runs."""

from collections.abc import Iterator, Sequence

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.case import Case
from rankscope.advise.caveats import FIRM_SEEDS
from rankscope.advise.confirm_on_test import is_forgetting_unweighed, is_unmeasured, worth
from rankscope.advise.statistics.power import Enough, enough, hidden_by_seeds, items_needed
from rankscope.advise.statistics.significance import FEWEST_ITEMS
from rankscope.formatting import POINTS, amount, count, difference
from rankscope.records import Estimate, Need, TrialRecords

NEXT_RATE = 10**0.5
"""Factor to the next learning rate beyond the end of a list: half a power of ten."""
MOST_ITEMS = 1_000_000
"""Test items beyond which more of them is no advice."""
AGAIN = "run again with --retry-failed"
TYPICAL_DISCORDANCE = 0.1
"""Share of right-or-wrong items on which two models differ, where too few were measured."""


def needs_of(case: Case, subject: Arm | None, gain_is_shown: bool) -> tuple[Need, ...]:
    """Everything that would help, with numbers; test split.

    gain_is_shown: the verdict holds that ``subject`` beats the base, so that its forgetting is what
    is left to ask about.
    """
    found = [*_runs(case), *_seeds(subject)]
    if subject is not None:
        of_data = _against_forgetting if gain_is_shown else _more_data
        found += [*of_data(case, subject), *_measures(case, subject), *_rates(case, subject)]
    return tuple(found)


def enough_text(case: Case, arm: Arm) -> str:
    """How much more data would show the gain looked for, one or two sentences."""
    gain, effect = arm.summary.gain, _effect(case, arm)
    shown = f"a gain of {amount(effect, case.unit)}"
    if gain is None or _is_spread_unknown(gain):
        return _unknown_text(case, gain, shown)
    found = enough(gain, effect)
    if _is_met(found, gain):
        return (
            f"These items and seeds would show {shown} in four studies of five: more of them is "
            "not what is missing."
        )
    if found.items is not None and found.seeds is not None:
        return (
            f"About {found.items:,} test items would show {shown} with these seeds, or "
            f"{count(found.seeds, 'seed')} with these items."
        )
    if found.items is not None:
        rest = "with these seeds; more seeds with these items would not"
        if gain.seeds == 1:
            rest = "of this one trained model; how much seeds vary is not known from one"
        return f"About {found.items:,} test items would show {shown} {rest}."
    if found.seeds is not None:
        why = f"{count(gain.seeds, 'seed')} say too little of how much seeds vary"
        if hidden_by_seeds(gain, effect):
            why = "the seeds differ too much for that"
        return (
            f"{count(found.seeds, 'seed')} would show {shown} with these items; more items alone "
            f"would not, since {why}."
        )
    if found.both is not None:
        items, seeds = found.both
        return (
            f"Neither more items nor more seeds alone would show {shown}: about {items:,} report "
            f"items and {count(seeds, 'seed')} together would."
        )
    return f"The seeds differ too much to show {shown} with any number of seeds worth training."


def _effect(case: Case, arm: Arm) -> float:
    """The gain looked for: the margin, or what was found if that is known to be more."""
    gain = arm.summary.gain
    if gain is None or _is_spread_unknown(gain):
        return case.objective.margin
    return max(case.objective.margin, gain.value)


def _is_spread_unknown(gain: Estimate) -> bool:
    """Whether nothing says how far items differ: there are too few, or all changed alike."""
    if gain.n < FEWEST_ITEMS or gain.item_error is None:
        return True
    return not (gain.item_error or gain.seed_error)


def _unknown_text(case: Case, gain: Estimate | None, shown: str) -> str:
    few = ""
    if gain is not None and gain.n < FEWEST_ITEMS:
        few = f"With fewer than {FEWEST_ITEMS} items no test can tell, even where all agree. "
    guess = _guessed_items(case, gain)
    if guess is not None:
        return (
            f"{few}About {guess:,} test items would show {shown}, if models differed on "
            f"{100 * TYPICAL_DISCORDANCE:.0f} % of them; how much these do is not known."
        )
    alike = "" if few or gain is None else f", and all {gain.n:,} changed alike"
    return (
        f"{few}How many test items would show {shown} is not known: it depends on how far their "
        f"changes differ from item to item{alike}."
    )


def _guessed_items(case: Case, gain: Estimate | None) -> int | None:
    """Items by a typical discordance; None of nats, which have none, or of items that agree."""
    if case.unit != POINTS or (gain is not None and gain.n >= FEWEST_ITEMS):
        return None
    return items_needed(case.objective.margin, TYPICAL_DISCORDANCE)


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
    """Settings that take less; a pass is cut to one row and a group to one trial before."""
    train = case.study.config.train
    untrained = [t.spec for t in short if t.train is None]
    steps = []
    if untrained:
        if not train.gradient_checkpointing:
            steps.append("train.gradient_checkpointing: true")
        if any(spec.is_full for spec in untrained) and train.optimizer != "adamw8bit":
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


def _more_data(case: Case, subject: Arm) -> Iterator[Need]:
    """Items and seeds at which the open gain would be seen; none that are there already."""
    gain, effect = subject.summary.gain, _effect(case, subject)
    text = enough_text(case, subject)
    if gain is None or _is_spread_unknown(gain):
        if gain is not None and gain.n >= FEWEST_ITEMS and _is_ruled_out(gain, effect):
            return
        values = {"effect": effect, "fewest_items": float(FEWEST_ITEMS)}
        if (guess := _guessed_items(case, gain)) is not None:
            values |= {"items": float(guess), "discordance": TYPICAL_DISCORDANCE}
        yield Need(kind="items", text=text, values=values)
        return
    if gain.high is not None and gain.high < 0:
        return
    what = f"a gain of {amount(effect, case.unit)}"
    yield from _of_data(enough(gain, effect), gain, what, {"effect": effect}, alone=text)


def _against_forgetting(case: Case, subject: Arm) -> Iterator[Need]:
    """What would show that a gain is worth its forgetting, and that a limit is kept."""
    net = worth(case, subject)
    if net is not None and not _shown(net):
        what = f"that it is worth {difference(net.value, case.net_unit)} by the study's weights"
        values = {"net": net.value}
        yield from _of_data(enough(net, abs(net.value)), net, what, values)
    limit, forgot = case.objective.max_forgetting, subject.summary.forgetting
    if limit is None or forgot is None or forgot.low is None or forgot.high is None:
        return
    if forgot.low <= limit < forgot.high:
        side = "more" if forgot.value > limit else "less"
        what = f"that it forgets {side} than the {amount(limit, case.retention_unit)} allowed"
        values = {"max_forgetting": limit, "forgetting": forgot.value}
        yield from _of_data(enough(forgot, abs(limit - forgot.value)), forgot, what, values)


def _of_data(
    found: Enough, estimate: Estimate, what: str, values: dict[str, float], alone: str = ""
) -> Iterator[Need]:
    """More items, or more seeds, each by itself; or both together. None that are there already.

    alone: said where there is one such need.
    """
    if _is_met(found, estimate):
        return
    if found.items is None and found.seeds is None:
        if found.both is not None:
            items, seeds = found.both
            text = f"About {items:,} test items and {count(seeds, 'seed')} would show {what}."
            values = values | {"items": float(items), "seeds": float(seeds)}
            yield Need(kind="items", text=alone or text, values=values)
        elif not alone:
            text = f"No number of items and seeds worth the work would show {what}."
            yield Need(kind="items", text=text, values=values)
        return
    if found.items is not None and found.seeds is not None:
        alone = ""
    if found.items is not None:
        text = f"About {found.items:,} test items would show {what}, with these seeds."
        if found.items > MOST_ITEMS:
            text = f"No number of test items worth answering would show {what}."
        yield Need(kind="items", text=alone or text, values=values | {"items": float(found.items)})
    if found.seeds is not None:
        text = f"{count(found.seeds, 'seed')} would show {what}, with these items."
        yield Need(kind="seeds", text=alone or text, values=values | {"seeds": float(found.seeds)})


def _measures(case: Case, subject: Arm) -> Iterator[Need]:
    """What would let forgetting count."""
    if is_unmeasured(case, subject.summary):
        yield Need(
            kind="retention",
            text="Forgetting is unknown: the base and this arm need scores on the same items of "
            "every retention task.",
        )
    if is_forgetting_unweighed(case, subject.summary):
        yield Need(
            kind="retention",
            text="Set objective.max_forgetting: what is forgotten is in another unit than the "
            "gain, and can be held to a limit.",
        )


def _shown(gain: Estimate) -> bool:
    """Whether the interval is clear of zero already."""
    return (gain.low is not None and gain.low > 0) or (gain.high is not None and gain.high < 0)


def _is_ruled_out(gain: Estimate, effect: float) -> bool:
    """Whether the interval lies below ``effect`` already."""
    return gain.high is not None and gain.high < effect


def _rates(case: Case, subject: Arm) -> Iterator[Need]:
    """The next learning rate beyond the end of a list that the choice stands at."""
    own = next((c for c in case.choice.candidates if c.arm is subject), None)
    if own is None:
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
