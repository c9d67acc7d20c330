"""The reasons behind a decision, and the limits of its evidence.

Numbers without a split are of the test split.
"""

from collections.abc import Iterator, Mapping

from rankscope.advise.arms import Arm
from rankscope.advise.axes import axis_messages
from rankscope.advise.checks import MOST_NAMED, first_names
from rankscope.advise.diagnostics import MORE_CAPACITY, diagnostics, parameters_per_token
from rankscope.advise.messages import Counted, Field, arm_name, message
from rankscope.advise.results import TaskResults, expected
from rankscope.formatting import byte_size, difference, duration, percent, signed, unit_of
from rankscope.records import AdviceMessage, ArmSummary, Estimate


def reasons_for(results: TaskResults, subject: Arm | None) -> tuple[AdviceMessage, ...]:
    """Reasons that describe ``subject``, then diagnostics and caveats of the whole task."""
    reasons: list[AdviceMessage] = []
    if subject is not None:
        arm = subject.summary
        reasons += [
            *_gain(results, arm),
            *_rival(results, subject),
            *_forgetting(results, arm),
            *_transfer(results, arm),
            *_cost(results, arm),
        ]
    reasons += axis_messages(results)
    return (*reasons, *diagnostics(results, subject), *_caveats(results, subject))


def _gain(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    if arm.score is None or arm.gain is None:
        return
    score = arm.score.value
    yield message(
        "gain",
        "{arm} scores {score:score} on {task} and the base {base:score}: {gain:change} "
        "({gain:evidence}).",
        arm=arm_name(arm),
        task=results.task,
        score=results.score(score),
        base=results.score(score - arm.gain.value),
        gain=results.score(arm.gain),
    )


def _rival(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    """Full fine-tuning against the best LoRA arm, or the reverse."""
    rival = results.best_lora if subject.summary.is_full else results.best_full
    if rival is None:
        return
    arm, other = subject.summary, rival.summary
    text = (
        "{rival} has an expected {net} of {net_gain:change} and is within the margin of the best "
    )
    text += "with a probability of {p}."
    yield message(
        "full",
        text,
        rival=arm_name(other),
        net=results.net_name,
        net_gain=results.net(expected(other).net),
        p=percent(expected(other).p_within_margin),
        p_within_margin=expected(other).p_within_margin,
        ahead=expected(arm).net - expected(other).net,
    )


def _forgetting(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    if arm.forgetting is None:
        return
    fields: dict[str, Field] = {}
    text = "On the retention tasks its score changes by {forgetting:reverse} "
    text += "({forgetting:reverse_evidence}): {tasks}."
    of = arm.expected
    if of is not None and of.forgetting is not None:
        unit = results.retention_unit
        low, high = (signed(-(end or 0.0), unit) for end in (of.forgetting_high, of.forgetting_low))
        fields = {
            "expected_forgetting": results.retained(of.forgetting),
            "interval": f"{low} to {high}",
        }
        text += (
            " Expected from all items, seeds and arms: {expected_forgetting:reverse} ({interval})."
        )
    yield message(
        "forgetting",
        text,
        forgetting=results.retained(arm.forgetting),
        tasks=", ".join(_change(results, name, e) for name, e in sorted(arm.retention.items())),
        **fields,
        **{f"retention.{name}": change.value for name, change in arm.retention.items()},
    )


def _transfer(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    if not arm.transfer:
        return
    falls_first = sorted(arm.transfer.items(), key=lambda pair: pair[1].value)
    values = {f"transfer.{name}": change.value for name, change in falls_first}
    unclear = {True: "", False: " (unclear)"}
    changes = [_change(results, name, e) + unclear[e.is_clear_of_zero] for name, e in falls_first]
    yield message(
        "transfer",
        "On other tasks it changes the score by: {tasks}.",
        tasks=", ".join(changes),
        **values,
    )


def _change(results: TaskResults, task: str, change: Estimate) -> str:
    unit = unit_of(results.study.task(task).score_unit)
    return f"{task} {difference(change.value, unit)}"


def _cost(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    total, full = results.study.model.num_parameters, results.best_full
    if not (arm.trainable_parameters and total):  # not known of imported scores
        return
    share = arm.trainable_parameters / total
    percent = f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
    details = f", {percent} of the model's {total:,}"
    values = {"share_of_model": share, "model_parameters": float(total)}
    if arm.seconds is not None:
        details += f", in {duration(arm.seconds)} per trial"
        values["seconds"] = arm.seconds
    if arm.peak_memory_bytes is not None:
        details += f", with {byte_size(arm.peak_memory_bytes)} of memory at the peak of its group"
        values["peak_memory_bytes"] = float(arm.peak_memory_bytes)
    if full is not None and not arm.is_full and full.summary.seconds:
        details += f" (full fine-tuning: {duration(full.summary.seconds)})"
        values["full_seconds"] = full.summary.seconds
    parameters = Counted(arm.trainable_parameters, "parameter")
    yield message(
        "cost",
        "It trains {trainable_parameters}{details}.",
        trainable_parameters=parameters,
        details=details,
        **values,
    )


def _caveats(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    """Limits of the task, or of the arm ``subject``, that no trust check states."""
    yield from _learning_rates(results)
    yield from _over_limit(results)
    if subject is not None:
        yield from _rank_edges(results, subject)


def _learning_rates(results: TaskResults) -> Iterator[AdviceMessage]:
    """Ranks that differ in nothing else, but were tried at one learning rate or at unequal ones."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in results.trials:
        if trial.spec.rank is not None and trial.spec.lr:
            rates = series.setdefault(trial.spec.arm_without_rank, {})
            rates.setdefault(trial.spec.rank, set()).add(trial.spec.lr)
    messages = [_confounded(by_rank) for by_rank in series.values() if len(by_rank) > 1]
    yield from {m.text: m for m in messages if m is not None}.values()


def _confounded(by_rank: Mapping[int, set[float]]) -> AdviceMessage | None:
    shared = set.intersection(*by_rank.values())
    tried = sorted(set.union(*by_rank.values()))
    if tried != sorted(shared):
        named = "; ".join(
            f"r={rank} at {', '.join(f'{lr:g}' for lr in sorted(by_rank[rank]))}"
            for rank in sorted(by_rank)
        )
        rates = {f"lr.{place}": lr for place, lr in enumerate(tried)}
        return message(
            "caveat",
            "Ranks were not trained at the same learning rates ({named}), so a difference between "
            "ranks may be one between learning rates. Give all ranks the same list.",
            named=named,
            ranks=len(by_rank),
            **rates,
        )
    if len(tried) > 1:
        return None
    all_ranks = "Both ranks" if len(by_rank) == 2 else f"All {len(by_rank)} ranks"
    return message(
        "caveat",
        "{all_ranks} were trained at one learning rate ({lr:g}), so a difference between ranks "
        "may be one between learning rates. Give lr a list.",
        all_ranks=all_ranks,
        ranks=len(by_rank),
        lr=tried[0],
    )


def _over_limit(results: TaskResults) -> Iterator[AdviceMessage]:
    limit, excluded = results.objective.max_forgetting, results.over_limit
    if limit is None or not excluded:
        return
    probabilities = {a.summary.label: expected(a.summary).p_over_limit or 0.0 for a in excluded}
    named = [f"{label}, {percent(p)}" for label, p in probabilities.items()]
    yield message(
        "caveat",
        "{excluded} of {arms} probably {forget} more than the {max_forgetting:amount} allowed and "
        "{were} left out: {named}.",
        excluded=Counted(len(excluded), "arm"),
        arms=len(results.arms),
        max_forgetting=results.retained(limit),
        forget="forgets" if len(excluded) == 1 else "forget",
        were="was" if len(excluded) == 1 else "were",
        **first_names(named),
        **{f"p_over_limit.{label}": p for label, p in [*probabilities.items()][:MOST_NAMED]},
    )


def _rank_edges(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    """The end of the ranks tried, unless the capacity rule asks for a rank on the other side."""
    rank, ratio = subject.summary.rank, parameters_per_token(results, subject) or 1.0
    ranks = sorted({r for a in results.arms if (r := a.summary.rank) is not None})
    if rank is None or len(ranks) < 2:
        return
    if 1 < rank == ranks[0] and ratio >= 1:
        yield message(
            "caveat", "r={rank} is the smallest rank tried: a smaller one may be enough.", rank=rank
        )
    if rank == ranks[-1] and ratio <= MORE_CAPACITY:
        text = "r={rank} is the largest rank tried: a larger one may gain more."
        if rank >= results.hidden_size_rank:
            text = (
                "r={rank} is the largest rank tried, and larger ones add no directions: more "
                "target modules may gain more."
            )
        yield message("caveat", text, rank=rank)
