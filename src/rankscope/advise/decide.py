"""The decision tree of one training task: which verdict, how firm, in one sentence.

The rule is written out in docs/science.md, "From scores to a decision".
"""

from collections.abc import Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.case import Case
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.confirm_on_test import checked, worth
from rankscope.advise.next_steps import after_failures, enough_text
from rankscope.advise.select import Candidate
from rankscope.advise.statistics.significance import ALPHA, FEWEST_ITEMS, holm
from rankscope.advise.verdict import Verdict, changes, is_firm, undecided
from rankscope.advise.wording import settings
from rankscope.formatting import POINTS, amount, count, difference, score_text
from rankscope.records import ArmSummary, Estimate


def decide(case: Case) -> Verdict:
    """Enough finished? Better than the base? Worth the forgetting? LoRA or full?"""
    chosen, best = case.choice.chosen, case.choice.best
    if chosen is None or best is None:
        return _without_candidates(case)
    gain = chosen.arm.summary.gain
    if gain is None or gain.low is None or gain.p is None or gain.n < FEWEST_ITEMS:
        return _too_little(case, chosen)
    proven = _proven(case, chosen, best)
    if proven is None:
        return _no_proof(case, chosen, best)
    if proven.utility <= 0 and case.objective.retention > 0:
        return _outweighed(case, proven)
    full = proven.arm.summary.is_full
    return checked(case, _full_or_lora(case, proven) if full else _use(case, proven))


def _without_candidates(case: Case) -> Verdict:
    if case.choice.excluded:
        arm = min(case.choice.excluded, key=lambda a: a.summary.validation_forgetting or 0.0)
        least, limit, unit = arm.summary, case.objective.max_forgetting or 0.0, case.retention_unit
        clear = len(case.choice.excluded) == len(case.arms) and all(
            is_firm(case, a.summary) and (f := a.summary.forgetting) and (f.low or 0.0) > limit
            for a in case.arms
        )
        return Verdict(
            "do_not_fine_tune",
            "firm" if clear else "tentative",
            f"Use none of these arms on {case.task}: each forgets more than the "
            f"{amount(limit, unit)} allowed; the least, {settings(least)}, loses "
            f"{amount(least.validation_forgetting or 0.0, unit)} on the validation split. A lower "
            "learning rate, fewer steps or an adapter scaled down may stay within it.",
            arm,
        )
    done = sum(t.status == "done" for t in case.trials)
    if not case.trials:
        return undecided(f"No arm was trained on {case.task}: only the base is known.")
    if done == 0:
        todo = " ".join(need.text for need in after_failures(case))
        if case.waiting:
            todo = "Run the study again to go on."
        return undecided(
            f"No trial on {case.task} has finished: {len(case.failed)} failed, {case.waiting} to "
            f"run. {todo}"
        )
    return undecided(
        f"{count(done, 'trial')} on {case.task} finished, but none has a score on the "
        "validation split: run the study again so that it is evaluated."
    )


def _too_little(case: Case, chosen: Candidate) -> Verdict:
    gain = chosen.arm.summary.gain
    if gain is None:
        found = "the base and the arm share no scored item on the test split"
    elif gain.n >= FEWEST_ITEMS:
        return undecided(
            f"Nothing can be tested on {case.task}: all {gain.n:,} test items changed by the "
            f"same {difference(gain.value, case.unit)}, so how far others would spread is "
            "unknown. Look at the scores before anything else.",
            chosen.arm,
        )
    else:
        found = f"the test split has {count(gain.n, 'item')}"
    return undecided(
        f"Too little data to decide on {case.task}: {found}. {enough_text(case, chosen.arm)}",
        chosen.arm,
    )


def _proven(case: Case, chosen: Candidate, best: Candidate) -> Candidate | None:
    """The first arm if its gain over the base passes; else the second if its does.

    Two arms named beforehand on each training task: one Holm family over all of them.
    """
    return next((c for c in (chosen, best) if case.is_shown_to_gain(c.arm.summary)), None)


def _handed_over(case: Case, small: Candidate, lora: Candidate) -> Candidate | None:
    """The first of two LoRA arms whose gain passes, Holm over the two on every training task."""
    pair = [small] if small is lora else [small, lora]
    gains = [c.arm.summary.gain for c in pair]
    adjusted = holm([1.0 if g is None or g.p is None else g.p for g in gains])
    for candidate, gain, p in zip(pair, gains, adjusted, strict=True):
        if gain is not None and gain.value > 0 and p * case.num_tasks < ALPHA:
            return candidate
    return None


def _no_proof(case: Case, chosen: Candidate, best: Candidate) -> Verdict:
    """Says of the arms that were tested, and no more; what was found stands in the reasons."""
    gains = [(a.summary, g) for a in case.arms if (g := a.summary.gain) is not None]
    top = max(g.value for _, g in gains)
    margin = case.objective.margin
    tested = _not_shown(chosen, best)
    if top >= margin:
        return undecided(
            f"The data cannot tell whether fine-tuning helps on {case.task}: {tested}. "
            f"{enough_text(case, chosen.arm)}",
            chosen.arm,
        )
    highest = _largest_high(gains)
    ruled_out = highest is not None and highest < margin
    rest = "how large a gain cannot be ruled out is unknown"
    every = len(gains) == len(case.arms)
    if ruled_out:
        of_all = "every arm" if every else "every arm that was scored"
        rest = f"gains of {amount(margin, case.unit)} are ruled out for {of_all}"
    elif highest is not None:
        rest = f"a gain up to {amount(highest, case.unit)} cannot be ruled out"
    firm = ruled_out and every and all(is_firm(case, a) for a, _ in gains)
    return Verdict(
        "do_not_fine_tune",
        "firm" if firm else "tentative",
        f"Do not fine-tune on {case.task} with these settings: {tested}; {rest}.",
        chosen.arm,
    )


def _not_shown(chosen: Candidate, best: Candidate) -> str:
    text = f"the arm chosen on the validation split, {settings(chosen.arm.summary)},"
    if chosen is not best:
        other = settings(best.arm.summary)
        text += f" and the one of the highest utility there, {other}, are"
        return f"{text} not shown to beat the base"
    return f"{text} is not shown to beat the base"


def _outweighed(case: Case, proven: Candidate) -> Verdict:
    arm = proven.arm.summary
    net = worth(case, proven.arm)
    clear = net is not None and net.high is not None and net.high < 0
    return Verdict(
        "do_not_fine_tune",
        "firm" if clear and is_firm(case, arm) else "tentative",
        f"By this study's weights ({case.objective.formula}) no arm is worth it on "
        f"{case.task}, not even {settings(arm)}: {changes(case, arm)}.",
        proven.arm,
    )


def _full_or_lora(case: Case, full: Candidate) -> Verdict:
    lora = case.choice.best_lora
    worse = lora is None or _clearly_worse(case, lora.arm, full.arm)
    if lora is None or worse or _falls_short(case, lora.arm, full.arm):
        arm = full.arm.summary
        why = "no LoRA arm was left to compare" if lora is None else _less(case, lora.arm.summary)
        if not worse:
            why += (
                "; its score falls short, but by the study's weights the sum is not clear of zero"
            )
        firm = worse and not case.choice.passed_over and is_firm(case, arm)
        return Verdict(
            "use_full",
            "firm" if firm else "tentative",
            f"Use {settings(arm)} for {case.task}: {_result(case, arm)}; {why}.",
            full.arm,
        )
    small = case.choice.small_lora
    if small is None or _falls_short(case, small.arm, full.arm):
        small = lora
    shown = _handed_over(case, small, lora)
    if shown is None or lora.utility <= 0:
        arm = full.arm.summary
        why = "is not shown to beat the base"
        if shown is not None:
            why = f"is not worth it by this study's weights ({case.objective.formula})"
        return Verdict(
            "use_full",
            "tentative",
            f"Use {settings(arm)} for {case.task}: {_result(case, arm)}; the best LoRA arm on the "
            f"validation split, {settings(lora.arm.summary)}, {why}.",
            full.arm,
        )
    # Full fine-tuning led on the validation split, yet the test split does not show it: the
    # cheaper of two that cannot be told apart.
    return _use(case, shown, doubtful=True)


def _less(case: Case, lora: ArmSummary) -> str:
    """The best LoRA arm's changes, where they are worth less than full fine-tuning's."""
    return f"the best LoRA arm, {settings(lora)}: {changes(case, lora)}"


def _clearly_worse(case: Case, lora: Arm, full: Arm) -> bool:
    """By the margin, in what the study weighs, with the whole interval below zero; test split."""
    net = net_difference(case.study, lora, full, case.objective.weights)
    if net is None or net.high is None:
        return False
    return net.value < -case.objective.margin and net.high < 0


def _falls_short(case: Case, lora: Arm, full: Arm) -> bool:
    """Clearly worse, or by the margin in what the study weighs with the score alone clearly lower.

    Forgetting may be too noisy to say what the two amount to together: grounds for full
    fine-tuning, not for being firm.
    """
    net = net_difference(case.study, lora, full, case.objective.weights)
    gap = arm_difference(case.study, lora, full, case.task)
    if net is None or net.value >= -case.objective.margin:
        return False
    return any(e is not None and e.high is not None and e.high < 0 for e in (net, gap))


def _use(case: Case, candidate: Candidate, doubtful: bool = False) -> Verdict:
    arm = candidate.arm.summary
    firm = is_firm(case, arm) and not doubtful
    tail = (
        "; full fine-tuning led on the validation split, but the test split does not show it"
        if doubtful
        else ""
    )
    return Verdict(
        "use",
        "firm" if firm else "tentative",
        f"Use {settings(arm)} for {case.task}: {_result(case, arm)}{tail}.",
        candidate.arm,
    )


def _result(case: Case, arm: ArmSummary) -> str:
    """Score, gain and forgetting in one clause."""
    score, gain, forgetting = arm.score, arm.gain, arm.forgetting
    if score is None or gain is None:
        return "its test score is missing"
    verb = "it answers" if case.unit == POINTS else "its answers have log probability"
    right = " right" if case.unit == POINTS else ""
    text = (
        f"{verb} {score_text(score.value, case.unit)}{right}, "
        f"{difference(gain.value, case.unit)} against the base"
    )
    if forgetting is None:
        return text + "; forgetting was not measured"
    return text + (
        f", and retention changes by {difference(-forgetting.value, case.retention_unit)}"
    )


def _largest_high(gains: Sequence[tuple[ArmSummary, Estimate]]) -> float | None:
    """None where one arm's is unknown."""
    highs = [g.high for _, g in gains if g.high is not None]
    return max(highs) if len(highs) == len(gains) else None
