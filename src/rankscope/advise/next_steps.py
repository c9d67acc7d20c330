"""What would decide an open question or make an answer firm: items, seeds, learning rates, runs."""

from collections.abc import Iterator, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.decide import Verdict
from rankscope.advise.messages import Counted, Field, arm_name, message
from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.power import data_needed, hidden_by_seeds, items_needed
from rankscope.advise.statistics.significance import FEWEST_ITEMS
from rankscope.advise.task_results import FEWEST_STEPS, TaskResults
from rankscope.formatting import POINTS, amount, count
from rankscope.records import (
    FEWEST_SEEDS,
    AdviceKind,
    AdviceMessage,
    Claim,
    Estimate,
    TrialRecords,
    finished_trials,
)

NEXT_RATE = 10**0.5
"""Factor to the next learning rate beyond the end of a list: half a power of ten."""
MOST_TIMES = 50  # More test items than this many times those of the study are not suggested
TYPICAL_DISCORDANCE = 0.1
"""Assumed share of right-or-wrong items on which two models differ, if too few were measured."""

ITEMS_UNKNOWN = (
    "How many test items would show {claim} is unknown: it depends on how much their changes vary."
)


def next_steps(
    results: TaskResults, verdict: Verdict, best_choice: Claim | None = None
) -> tuple[AdviceMessage, ...]:
    """Everything that would help, with numbers from the test split; nothing for a firm verdict."""
    if verdict.confidence == "firm":
        return ()
    subject = verdict.subject
    steps = [*_runs(results), *_seeds(subject)]
    if subject is not None:
        if results.is_barely_trained(subject):
            steps.append(
                message(
                    "steps",
                    "Train at least {fewest_steps} steps, until the loss no longer falls.",
                    fewest_steps=FEWEST_STEPS,
                )
            )
        if verdict.recommends_subject or results.is_shown_to_gain(subject.summary):
            steps += [*_for_forgetting(results, subject), *_for_choice(results, best_choice)]
        else:
            steps += _for_gain(results, subject, is_open=verdict.decision == "not_decided")
        steps += [*_retention(results, subject), *_learning_rates(results, subject)]
    return tuple(steps)


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


def _seeds(subject: Arm | None) -> Iterator[AdviceMessage]:
    if subject is not None and subject.summary.seeds < FEWEST_SEEDS:
        missing = FEWEST_SEEDS - subject.summary.seeds
        yield message(
            "seeds", "Train {missing}.", seeds=FEWEST_SEEDS, missing=Counted(missing, "more seed")
        )


def _for_gain(results: TaskResults, subject: Arm, is_open: bool) -> list[AdviceMessage]:
    """Data that would show the gain: the margin, or the gain that was measured if larger.

    That no data would help is reported only for an open question.
    """
    gain, margin = subject.summary.gain, results.objective.margin
    if gain is None or gain.n < FEWEST_ITEMS:
        return [_for_few_items(results)]
    if gain.is_below(0):
        return []
    if gain.item_error is None or not (gain.item_error or gain.seed_error):
        # The items all changed alike, so their spread is unknown.
        if gain.is_below(margin):
            return []
        claim = f"a gain of {amount(margin, results.unit)}"
        return [
            message(
                "items",
                ITEMS_UNKNOWN,
                claim=claim,
                effect=margin,
            )
        ]
    effect = max(margin, gain.value)
    step = _more_data(gain, effect, f"a gain of {amount(effect, results.unit)}", effect=effect)
    return [step] if is_open or {"items", "seeds"} & step.values.keys() else []


def _for_few_items(results: TaskResults) -> AdviceMessage:
    margin = results.objective.margin
    claim = f"a gain of {amount(margin, results.unit)}"
    items = items_needed(margin, TYPICAL_DISCORDANCE)
    if results.unit != POINTS or items is None:
        return message(
            "items",
            ITEMS_UNKNOWN,
            claim=claim,
            effect=margin,
        )
    return message(
        "items",
        "With fewer than {fewest_items} items no test can decide. About {items} would show "
        "{claim}, if the models differed on {percent} of them.",
        claim=claim,
        effect=margin,
        items=Counted(items, "test item"),
        fewest_items=FEWEST_ITEMS,
        discordance=TYPICAL_DISCORDANCE,
        percent=f"{100 * TYPICAL_DISCORDANCE:.0f} %",
    )


def _for_forgetting(results: TaskResults, subject: Arm) -> list[AdviceMessage]:
    """Data that would show that a gain is worth its forgetting, and that a limit is kept."""
    steps = []
    net = subject.summary.net_gain
    if net is not None and not net.is_clear_of_zero:
        claim = f"a net gain of {results.net(net):change}"
        steps.append(_more_data(net, abs(net.value), claim, net=net.value))
    limit, forgetting = results.objective.max_forgetting, subject.summary.forgetting
    if limit is None or forgetting is None or forgetting.low is None or forgetting.high is None:
        return steps
    if forgetting.low <= limit < forgetting.high:
        side = "more" if forgetting.value > limit else "less"
        claim = f"that it forgets {side} than the {amount(limit, results.retention_unit)} allowed"
        values = {"max_forgetting": limit, "forgetting": forgetting.value}
        steps.append(_more_data(forgetting, abs(limit - forgetting.value), claim, **values))
    return steps


def _for_choice(results: TaskResults, best_choice: Claim | None) -> Iterator[AdviceMessage]:
    """Data that would show that the closest rival is not better by more than the margin."""
    if best_choice is None or best_choice.confidence == "firm" or best_choice.estimate is None:
        return
    lead, margin = best_choice.estimate, results.objective.margin
    rival = next(a for a in results.arms if a.summary.label == best_choice.rival)
    claim = f"whether {arm_name(rival.summary)} is better by {amount(margin, results.net_unit)}"
    yield _more_data(lead, abs(margin - lead.value), claim, lead=lead.value, margin=margin)


def _more_data(estimate: Estimate, size: float, claim: str, **values: float) -> AdviceMessage:
    """Items, seeds or both that would show a difference of ``size``, and with it the ``claim``."""
    needed, most_items = data_needed(estimate, size), MOST_TIMES * estimate.n
    items, seeds = needed.items, needed.seeds
    fields: dict[str, Field] = {"claim": claim, **values}
    if estimate.item_error is None:
        return message("items", ITEMS_UNKNOWN, **fields)
    if (items and items <= estimate.n) or (seeds and seeds <= estimate.seeds):
        text = (
            "These items and seeds would already show {claim} four times out of five; collecting "
            "more will not settle this."
        )
        return message("items", text, **fields)
    kind: AdviceKind = "items"
    if items is None and seeds is None:
        if needed.both is None:
            text = (
                "The seeds differ too much: no practical number of items and seeds would show "
                "{claim}."
            )
            return message("items", text, **fields)
        items, seeds = needed.both
        text = "About {items} and {seeds} together would show {claim}; neither alone would."
    elif seeds is not None and (items is None or items > most_items):
        kind, why = "seeds", "the seeds differ too much"
        fields["seeds_measured"] = estimate.seeds
        if items is not None:
            why, items = f"it would take more than {MOST_TIMES} times as many", None
        elif not hidden_by_seeds(estimate, size):
            why = f"{count(estimate.seeds, 'seed')} do not show well enough how much seeds vary"
        text = "{seeds} would show {claim} with the current items; more items alone would not, "
        text += f"because {why}."
    elif seeds is not None:
        text = (
            "About {items} would show {claim} with the current seeds; {seeds} would with the "
            "current items."
        )
    elif estimate.seeds == 1:
        text = (
            "About {items} would show {claim} for this one trained model; one seed does not show "
            "how much seeds vary."
        )
    else:
        text = (
            "About {items} would show {claim} with the current seeds; more seeds alone would not."
        )
    if items is not None and items > most_items:
        text = (
            "The difference is too small to settle with more items: showing {claim} would take "
            "more than {most_times} times as many."
        )
        return message("items", text, most_times=MOST_TIMES, **fields)
    if items is not None:
        fields["items"] = Counted(items, "test item")
    if seeds is not None:
        fields["seeds"] = Counted(seeds, "seed")
    return message(kind, text, **fields)


def _retention(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    if results.lacks_retention_scores(subject.summary):
        yield message(
            "retention", "Score the base and this arm on the same items of every retention task."
        )


def _learning_rates(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    lr, lrs = subject.summary.lr, results.rates_of(subject)
    if len(lrs) == 1:
        yield message(
            "learning_rate",
            "Only one learning rate was tried for it ({lr:g}): add {lower:.2g} and {higher:.2g}.",
            lr=lr,
            lower=lr / NEXT_RATE,
            higher=lr * NEXT_RATE,
        )
    elif lrs and lr in (lrs[0], lrs[-1]):
        further = lr / NEXT_RATE if lr == lrs[0] else lr * NEXT_RATE
        yield message("learning_rate", "Add the learning rate {next:.2g}.", lr=lr, next=further)
