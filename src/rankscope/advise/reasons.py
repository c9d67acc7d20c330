"""The reasons behind a decision, and the limits of its evidence.

Numbers without a split are of the test split.
"""

from collections.abc import Iterator, Mapping

from rankscope.advise.arms import Arm
from rankscope.advise.checks import MOST_NAMED, first_names
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.diagnostics import MORE_CAPACITY, diagnostics, parameters_per_token
from rankscope.advise.messages import Counted, Field, Measured, arm_name, message
from rankscope.advise.retention import RetentionScale, shown_scale
from rankscope.advise.statistics.estimates import non_inferior
from rankscope.advise.task_results import TaskResults
from rankscope.formatting import NATS, amount, byte_size, difference, duration, rounded, unit_of
from rankscope.records import AdviceMessage, ArmSummary, Estimate


def reasons_for(results: TaskResults, subject: Arm | None) -> tuple[AdviceMessage, ...]:
    """Reasons that describe ``subject``, then diagnostics and caveats of the whole task."""
    reasons: list[AdviceMessage] = []
    if subject is not None:
        arm = subject.summary
        reasons += [
            *_gain(results, arm),
            *_other_gains(results, subject),
            *_full_or_lora(results, subject),
            *_forgetting(results, arm),
            *_transfer(results, arm),
            _cost(results, arm),
            *_choice(results),
        ]
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


def _other_gains(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    chosen, best = results.choice.chosen, results.choice.best
    if chosen is None or best is None or subject is not chosen.arm:
        return
    tested = [chosen.arm.summary, best.arm.summary]
    if any(results.is_shown_to_gain(arm) for arm in tested):
        return
    gains = [(a.summary, a.summary.gain) for a in results.arms if a.summary.gain is not None]
    if not gains:
        return
    others = []
    if best is not chosen:
        text = (
            "{arm}, which has the highest net gain on the validation split, scores {gain:change} "
            "against the base ({gain:evidence})."
        )
        others.append((text, best.arm.summary))
    (largest, most), *rest = sorted(gains, key=lambda pair: -pair[1].value)
    top, unit = rounded(most.value, results.unit), results.unit
    if largest not in tested and all(rounded(gain.value, unit) < top for _, gain in rest):
        text = (
            "{arm}, not chosen on the validation split, scores the most of {arms} on the test "
            "split: {gain:change} against the base ({gain:evidence})."
        )
        others.append((text, largest))
    for text, arm in others:
        if arm.gain is not None:
            gain, arms = results.score(arm.gain), Counted(len(gains), "arm")
            yield message("gain", text, arm=arm_name(arm), gain=gain, arms=arms)


def _full_or_lora(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    rival = results.rival_kind(subject)
    if rival is None:
        return
    gap = arm_difference(results.study, subject, rival.arm, results.task)
    if gap is None:
        return
    margin = results.objective.margin
    if gap.is_above(0):
        verdict = "it is better"
    elif non_inferior(gap, margin):
        verdict = f"it matches within {amount(margin, results.unit)}"
    elif gap.is_below(0):
        verdict = "it is worse"
    else:
        verdict = f"a match within {amount(margin, results.unit)} is not shown"
    fields: dict[str, Field] = {"rival": arm_name(rival.arm.summary), "verdict": verdict}
    fields |= {"margin": margin, "gap": results.score(gap)}
    forgetting = results.shown_forgetting(subject.summary)
    rivals = results.shown_forgetting(rival.arm.summary)
    text = "Against {rival} it scores {gap:change} ({gap:evidence}): {verdict}."
    if forgetting is not None and rivals is not None:
        text += " Its retention is {forgetting_gap:reverse} against it."
        gap_kept = Measured(forgetting.value - rivals.value, forgetting.unit)
        fields = {"forgetting_gap": gap_kept} | fields
    yield message("full", text, **fields)


def _forgetting(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    weighed = arm.weighed_forgetting
    if results.scale.name == "gold_logprob" and weighed is not None:
        yield message(
            "forgetting",
            "The right answers' log-probability on the retention tasks, among the answers offered "
            "if there are any, changes by {logprob_forgetting:reverse} "
            "({logprob_forgetting:reverse_evidence}){unclear}; this is weighed against the gain.",
            logprob_forgetting=Measured(weighed, NATS),
            unclear=_unclear(results, arm, weighed, results.scale),
        )
    if arm.forgetting is None:
        return
    yield message(
        "forgetting",
        "On the retention tasks its score changes by {forgetting:reverse} "
        "({forgetting:reverse_evidence}){unclear}: {tasks}.",
        forgetting=results.retained(arm.forgetting),
        unclear=_unclear(results, arm, arm.forgetting, shown_scale(results.study, results.task)),
        tasks=", ".join(_change(results, name, e) for name, e in sorted(arm.retention.items())),
        **{f"retention.{name}": change.value for name, change in arm.retention.items()},
    )


def _unclear(results: TaskResults, arm: ArmSummary, change: Estimate, scale: RetentionScale) -> str:
    if change.is_clear_of_zero:
        return ""
    if results.forgot_as_trained(arm, scale):
        return ", a clear loss of the models trained, by their items"
    return ", not clear of zero"


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


def _cost(results: TaskResults, arm: ArmSummary) -> AdviceMessage:
    total, full = results.study.model.num_parameters, results.choice.best_full
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
    if full is not None and not arm.is_full and full.arm.summary.seconds:
        details += f" (full fine-tuning: {duration(full.arm.summary.seconds)})"
        values["full_seconds"] = full.arm.summary.seconds
    parameters = Counted(arm.trainable_parameters, "parameter")
    return message(
        "cost",
        "It trains {trainable_parameters}{details}.",
        trainable_parameters=parameters,
        details=details,
        **values,
    )


def _choice(results: TaskResults) -> Iterator[AdviceMessage]:
    best, chosen = results.choice.best, results.choice.chosen
    if best is None or chosen is None:
        return
    # Arms with negative utility or over the limit on forgetting do not count as close.
    conditions = [" with a net gain above zero"] if best.utility > 0 else []
    conditions += [" within the forgetting limit"] if results.choice.excluded else []
    counted = " and".join(conditions)
    names = {"best": arm_name(best.arm.summary), "chosen": arm_name(chosen.arm.summary)}
    fields: dict[str, Field] = {
        "formula": results.objective.formula,
        "best_net": results.net(best.utility),
        "chosen_net": results.net(chosen.utility),
        "margin": results.net(results.objective.margin),
        **names,
    }
    text = (
        "On the validation split {best} has the highest net gain ({formula}), {best_net:change}; "
    )
    if chosen is best:
        text += f"no {_smaller_arms(results, best.arm.summary, counted)}."
    else:
        text += (
            f"{{chosen}} has {{chosen_net:change}} and is the smallest rank{counted} within "
            "{margin:amount} of it."
        )
    yield message("choice", text, **fields)


def _smaller_arms(results: TaskResults, best: ArmSummary, counted: str) -> str:
    """Which arms could have been preferred to the best one, and were not."""
    rivals = [a.summary for a in results.arms if a.summary.is_lora]
    name = "LoRA arm"
    if best.is_lora:
        name, rivals = "smaller rank", [a for a in rivals if (a.rank or 0) < (best.rank or 0)]
    if not rivals:
        return f"{name} was tried"
    return f"{name}{counted} comes within {results.net(results.objective.margin):amount} of it"


def _caveats(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    """Limits of the task, or of the arm ``subject``, that no trust check states."""
    for arm in results.choice.passed_over[:1]:
        yield message(
            "caveat",
            "Without its failed trials {arm} would have a higher net gain than the LoRA arms it "
            "is compared with. It may be worth another try.",
            arm=arm_name(arm.summary),
        )
    yield from _learning_rates(results)
    yield from _over_limit(results)
    if subject is not None:
        yield from _limit_not_shown(results, subject)
        yield from _rank_edges(results, subject)


def _learning_rates(results: TaskResults) -> Iterator[AdviceMessage]:
    """Ranks that differ in nothing else, but were tried at one learning rate or at unequal ones."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in results.trials:
        if trial.spec.rank is not None:
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
    limit, excluded = results.objective.max_forgetting, results.choice.excluded
    if limit is None or not excluded:
        return
    unit = results.retention_unit
    lost = [(a.summary, a.summary.validation_forgetting or 0.0) for a in excluded]
    named = [f"{arm_name(arm)}, {amount(forgetting, unit)}" for arm, forgetting in lost]
    yield message(
        "caveat",
        "{excluded} of {arms} forgot more than the {max_forgetting:amount} allowed on the "
        "validation split and {were} left out: {named}.",
        excluded=Counted(len(excluded), "arm"),
        arms=len(results.arms),
        max_forgetting=Measured(limit, unit),
        were="was" if len(excluded) == 1 else "were",
        **first_names(named),
        **{f"validation_forgetting.{arm.label}": value for arm, value in lost[:MOST_NAMED]},
    )


def _limit_not_shown(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    limit, forgetting = results.objective.max_forgetting, subject.summary.forgetting
    if limit is None or forgetting is None:
        return
    if forgetting.high is None or forgetting.high > limit:
        yield message(
            "caveat",
            "That {arm} forgets no more than the {max_forgetting:amount} allowed is not shown: on "
            "the test split retention changes by {forgetting:reverse} "
            "({forgetting:reverse_evidence}).",
            arm=arm_name(subject.summary),
            max_forgetting=results.retained(limit),
            forgetting=results.retained(forgetting),
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
