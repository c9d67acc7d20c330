"""The reasons behind a decision. Numbers without a split are of the test split."""

from collections.abc import Iterator

from rankscope.advise.arms import Arm
from rankscope.advise.caveats import caveats
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.diagnostics import diagnostics
from rankscope.advise.messages import Counted, Field, Measured, arm_name, clause, message
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
    return (*reasons, *diagnostics(results, subject), *caveats(results, subject))


def _gain(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    if arm.score is None or arm.gain is None:
        return
    score = arm.score.value
    yield message(
        "gain",
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
    others = [] if best is chosen else [("best_gain", best.arm.summary)]
    (largest, most), *rest = sorted(gains, key=lambda pair: -pair[1].value)
    top, unit = rounded(most.value, results.unit), results.unit
    if largest not in tested and all(rounded(gain.value, unit) < top for _, gain in rest):
        others.append(("largest_gain", largest))
    for name, arm in others:
        if arm.gain is not None:
            gain, arms = results.score(arm.gain), Counted(len(gains), "arm")
            yield message(name, arm=arm_name(arm), gain=gain, arms=arms)


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
    if forgetting is None or rivals is None:
        yield message("full", **fields)
    else:
        forgetting_gap = Measured(forgetting.value - rivals.value, forgetting.unit)
        yield message("full_retention", forgetting_gap=forgetting_gap, **fields)


def _forgetting(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    weighed = arm.weighed_forgetting
    if results.scale.name == "gold_logprob" and weighed is not None:
        yield message(
            "gold_logprob",
            logprob_forgetting=Measured(weighed, NATS),
            unclear=_unclear(results, arm, weighed, results.scale),
        )
    if arm.forgetting is None:
        return
    yield message(
        "retention",
        forgetting=results.retained(arm.forgetting),
        unclear=_unclear(results, arm, arm.forgetting, shown_scale(results.study, results.task)),
        tasks=", ".join(_change(results, name, e) for name, e in sorted(arm.retention.items())),
        **{f"retention.{name}": change.value for name, change in arm.retention.items()},
    )


def _unclear(results: TaskResults, arm: ArmSummary, change: Estimate, scale: RetentionScale) -> str:
    if change.is_clear_of_zero:
        return ""
    return clause("clear_by_seed" if results.forgot_in_each_seed(arm, scale) else "unclear")


def _transfer(results: TaskResults, arm: ArmSummary) -> Iterator[AdviceMessage]:
    if not arm.transfer:
        return
    falls_first = sorted(arm.transfer.items(), key=lambda pair: pair[1].value)
    values = {f"transfer.{name}": change.value for name, change in falls_first}
    unclear = {True: "", False: " (unclear)"}
    changes = [_change(results, name, e) + unclear[e.is_clear_of_zero] for name, e in falls_first]
    yield message("transfer", tasks=", ".join(changes), **values)


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
    return message("cost", trainable_parameters=parameters, details=details, **values)


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
    if chosen is best:
        smaller = _smaller_arms(results, best.arm.summary, counted)
        yield message("best_is_chosen", smaller=smaller, **fields)
        return
    yield message("smaller_is_chosen", counted=counted, **fields)


def _smaller_arms(results: TaskResults, best: ArmSummary, counted: str) -> str:
    """Which arms could have been preferred to the best one, and were not."""
    rivals = [a.summary for a in results.arms if a.summary.is_lora]
    name = "LoRA arm"
    if best.is_lora:
        name, rivals = "smaller rank", [a for a in rivals if (a.rank or 0) < (best.rank or 0)]
    if not rivals:
        return f"{name} was tried"
    return f"{name}{counted} comes within {results.net(results.objective.margin):amount} of it"
