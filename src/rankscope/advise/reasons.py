"""The sentences behind a decision, each with its numbers: test split unless it says otherwise."""

from rankscope.advise.arms import Arm
from rankscope.advise.case import Case
from rankscope.advise.caveats import limits
from rankscope.advise.comparisons import arm_difference, forgetting_difference
from rankscope.advise.confirm_on_test import worth
from rankscope.advise.diagnostics import signs
from rankscope.advise.statistics.estimates import negated, non_inferior
from rankscope.advise.wording import settings, values_of
from rankscope.formatting import amount, count, difference, evidence, score_text, unit_of
from rankscope.records import ArmSummary, Reason


def reasons_for(case: Case, subject: Arm | None) -> tuple[Reason, ...]:
    """Everything worth saying of ``subject``, and the signs and limits of the whole task."""
    own: list[Reason] = []
    if subject is not None:
        arm = subject.summary
        own += [
            *_gain(case, arm),
            *_other_gains(case, subject),
            *_full(case, subject),
            *_forgetting(case, arm),
            *_transfer(case, arm),
            *_cost(case, arm),
            *_choice(case),
            *_net(case, subject),
        ]
    return (*own, *signs(case, subject), *limits(case, subject))


def _gain(case: Case, arm: ArmSummary) -> list[Reason]:
    if arm.score is None or arm.gain is None:
        return []
    base = arm.score.value - arm.gain.value
    text = (
        f"{settings(arm)} reaches {score_text(arm.score.value, case.unit)} on {case.task} against "
        f"the base's {score_text(base, case.unit)}: {difference(arm.gain.value, case.unit)} "
        f"({evidence(arm.gain, case.unit)})."
    )
    values = {"score": arm.score.value, "base": base, **values_of(arm.gain, "gain")}
    return [Reason(kind="gain", text=text, values=values)]


def _other_gains(case: Case, subject: Arm) -> list[Reason]:
    """Where no gain is shown: that of the other arm tested, and the largest if it is a third's."""
    chosen, best = case.choice.chosen, case.choice.best
    if chosen is None or best is None or subject is not chosen.arm:
        return []
    tested = [chosen.arm.summary, best.arm.summary]
    if any(case.is_shown_to_gain(arm) for arm in tested):
        return []
    found = []
    if best is not chosen:
        found.append((best.arm.summary, "of the highest utility on the validation split, scores"))
    gains = [(a.summary, g.value) for a in case.arms if (g := a.summary.gain) is not None]
    largest = max(gains, key=lambda pair: pair[1], default=(None, 0.0))[0]
    if largest is not None and largest not in tested:
        most = f"scores the most of {count(len(gains), 'arm')} on the test split,"
        found.append((largest, f"not chosen on the validation split, {most}"))
    return [
        Reason(
            kind="gain",
            text=f"{settings(arm)}, {what} {difference(arm.gain.value, case.unit)} against "
            f"the base ({evidence(arm.gain, case.unit)}).",
            values={**values_of(arm.gain, "gain"), "arms": float(len(gains))},
        )
        for arm, what in found
        if arm.gain is not None
    ]


def _full(case: Case, subject: Arm) -> list[Reason]:
    """LoRA against full fine-tuning, whichever of the two is recommended."""
    rival = case.choice.best_lora if subject.summary.is_full else case.choice.best_full
    if rival is None:
        return []
    gap = arm_difference(case.study, subject, rival.arm, case.task)
    if gap is None:
        return []
    margin = case.objective.margin
    name = settings(rival.arm.summary)
    if gap.low is not None and gap.low > 0:
        verdict = "it is better"
    elif non_inferior(gap, margin):
        verdict = f"it matches it within {amount(margin, case.unit)}"
    elif gap.high is not None and gap.high < 0:
        verdict = "it falls short of it"
    else:
        verdict = f"matching it within {amount(margin, case.unit)} is not shown"
    text = (
        f"Against {name} it scores {difference(gap.value, case.unit)} "
        f"({evidence(gap, case.unit)}): {verdict}."
    )
    values = {**values_of(gap, "gap"), "margin": margin}
    forgot_more = forgetting_difference(case.study, subject, rival.arm)
    if forgot_more is not None:
        text += f" Its retention is {difference(-forgot_more, case.retention_unit)} against it."
        values["forgetting_gap"] = forgot_more
    return [Reason(kind="full", text=text, values=values)]


def _forgetting(case: Case, arm: ArmSummary) -> list[Reason]:
    if arm.forgetting is None:
        return []
    unit = case.retention_unit
    change = arm.forgetting
    gained = change.value < 0  # then the interval is of the gain, too
    shown = evidence(negated(change) if gained else change, unit)
    unknown = change.low is None or change.high is None
    clear = not unknown and (float(change.low or 0) > 0 or float(change.high or 0) < 0)
    by_task = {t.name: unit_of(t.score_unit) for t in case.study.tasks}
    parts = [
        f"{name} {difference(e.value, by_task[name])}" for name, e in sorted(arm.retention.items())
    ]
    text = (
        f"On what the base knew it {'gains' if gained else 'loses'} {amount(change.value, unit)} "
        f"({shown}{'' if gained else '; forgetting is the fall'})"
        f"{'' if clear else ', not clear of zero'}: {', '.join(parts)}."
    )
    values = values_of(change, "forgetting")
    values |= {f"retention.{name}": e.value for name, e in arm.retention.items()}
    return [Reason(kind="forgetting", text=text, values=values)]


def _transfer(case: Case, arm: ArmSummary) -> list[Reason]:
    """Other tasks, the largest fall first."""
    if not arm.transfer:
        return []
    by_task = {t.name: unit_of(t.score_unit) for t in case.study.tasks}
    ordered = sorted(arm.transfer.items(), key=lambda pair: pair[1].value)
    parts = []
    for name, e in ordered:
        sure = e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
        parts.append(f"{name} {difference(e.value, by_task[name])}{'' if sure else ' (unclear)'}")
    text = f"On other tasks it changes the score by: {', '.join(parts)}."
    values = {f"transfer.{name}": e.value for name, e in ordered}
    return [Reason(kind="transfer", text=text, values=values)]


def _cost(case: Case, arm: ArmSummary) -> list[Reason]:
    total = case.study.model.num_parameters
    text = f"It trains {count(arm.trainable_parameters, 'parameter')}"
    values = {"trainable_parameters": float(arm.trainable_parameters)}
    if total:
        share = arm.trainable_parameters / total
        text += f", {_percent(share)} of the model's {total:,}"
        values |= {"share_of_model": share, "model_parameters": float(total)}
    if arm.seconds is not None:
        text += f", in {arm.seconds:.3g} s a trial"
        values["seconds"] = arm.seconds
    if arm.peak_memory_bytes is not None:
        text += f", with {arm.peak_memory_bytes / 1e9:.2g} GB at the peak of its group"
        values["peak_memory_bytes"] = float(arm.peak_memory_bytes)
    rival = case.choice.best_full
    if rival is not None and not arm.is_full and rival.arm.summary.seconds:
        text += f" (full fine-tuning: {rival.arm.summary.seconds:.3g} s)"
        values["full_seconds"] = rival.arm.summary.seconds
    return [Reason(kind="cost", text=text + ".", values=values)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _choice(case: Case) -> list[Reason]:
    """What the validation split said, and where the test split led elsewhere."""
    best, chosen = case.choice.best, case.choice.chosen
    if best is None or chosen is None:
        return []
    margin = case.objective.margin
    text = (
        f"On the validation split the highest utility ({case.objective.formula}) is "
        f"{best.utility:.3f}, of {settings(best.arm.summary)}"
    )
    # Arms below zero or over the limit are not looked at, however near they come.
    counted = [" with more utility than the base"] if best.utility > 0 else []
    counted += [" within the forgetting limit"] if case.choice.excluded else []
    which = " and".join(counted)
    if chosen is best:
        text += f"; {_none_smaller(case, best.arm.summary, which)}."
    else:
        text += (
            f"; {settings(chosen.arm.summary)} has {chosen.utility:.3f} and is the smallest rank"
            f"{which} that comes within {margin:g} of it."
        )
    values = {"best_utility": best.utility, "chosen_utility": chosen.utility, "margin": margin}
    gap = None if chosen is best else arm_difference(case.study, chosen.arm, best.arm, case.task)
    if gap is not None:
        matches = "" if non_inferior(gap, margin) else " not"
        text += (
            f" On the test split it scores {difference(gap.value, case.unit)} against it "
            f"({evidence(gap, case.unit)}): as good within {amount(margin, case.unit)} is{matches} "
            "shown."
        )
        values |= values_of(gap, "gap_to_best")
    return [Reason(kind="choice", text=text, values=values)]


def _none_smaller(case: Case, best: ArmSummary, which: str) -> str:
    """Why the best arm is the one chosen; ``which`` says what arms were looked at."""
    rivals = [a.summary for a in case.arms if a.summary.is_lora]
    name = "LoRA arm"
    if best.is_lora:
        name, rivals = "smaller rank", [a for a in rivals if (a.rank or 0) < (best.rank or 0)]
    if not rivals:
        return f"no {name} was tried"
    return f"no {name}{which} comes within {case.objective.margin:g} of it"


def _net(case: Case, subject: Arm) -> list[Reason]:
    """What the arm is worth by the study's weights, gain and forgetting tested as one."""
    weights, net = case.objective.weights, worth(case, subject)
    if net is None:
        return []
    clear = (net.low or 0.0) > 0 or (net.high or 0.0) < 0
    text = (
        f"By the study's weights (gain x {weights[0]:g} less forgetting x {weights[1]:g}) it is "
        f"worth {difference(net.value, case.net_unit)} ({evidence(net, case.net_unit)})"
        f"{'' if clear else ', not clear of zero'}."
    )
    return [Reason(kind="choice", text=text, values=values_of(net, "net"))]
