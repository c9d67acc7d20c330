"""Decide for one training task: use a LoRA arm, use full fine-tuning, do not fine-tune, or open.

An *arm* is one configuration (method, rank, learning rate, ...) trained with several seeds. Two
arms were picked on the validation split (``select.py``): *best* has the highest utility, which is
gain minus forgetting minus cost by the study's weights, and *chosen* is the smallest LoRA rank
whose utility is within the margin of the best. Here the test split says whether they hold:

1. Are there enough data to decide anything?
2. Does the chosen arm, or else the best one, beat the base significantly?
3. Is its gain worth what it forgets?
4. If it is full fine-tuning: is LoRA clearly worse?
5. Does the arm's forgetting on the test split confirm the choice (``confirm_on_test.py``)?

``firm`` answers are supported by the intervals, ``tentative`` ones only by the estimates. The exact
rule is in docs/science.md, "From scores to a decision".
"""

from rankscope.advise.arms import Arm
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.confirm_on_test import confirm_on_test
from rankscope.advise.headlines import clause, headline
from rankscope.advise.messages import Counted, Measured, arm_name
from rankscope.advise.select import Candidate
from rankscope.advise.statistics.significance import ALPHA, FEWEST_ITEMS, holm
from rankscope.advise.task_results import TaskResults
from rankscope.advise.verdict import (
    Verdict,
    confidence,
    describe_changes,
    describe_result,
    not_decided,
)


def decide(results: TaskResults) -> Verdict:
    """Answer one training task."""
    chosen, best = results.choice.chosen, results.choice.best
    if chosen is None or best is None:
        return _nothing_to_choose_from(results)
    gain = chosen.arm.summary.gain
    if gain is None or gain.low is None or gain.p is None or gain.n < FEWEST_ITEMS:
        return _too_little_data(results, chosen.arm)
    # The chosen arm goes first; the best one gets a second try. Holm's correction covers both.
    winner = next((c for c in (chosen, best) if results.is_shown_to_gain(c.arm.summary)), None)
    if winner is None:
        return _no_gain_shown(results, chosen, best)
    if winner.utility <= 0 and results.objective.retention > 0:
        return _not_worth_it(results, winner.arm)
    if winner.arm.summary.is_full:
        verdict = _full_or_lora(results, winner)
    else:
        verdict = _use_lora(results, winner.arm)
    return confirm_on_test(results, verdict)


def _nothing_to_choose_from(results: TaskResults) -> Verdict:
    """No arm has a validation score, or every arm exceeds the limit on forgetting."""
    if results.choice.excluded:
        return _all_over_limit(results)
    if not results.trials:
        return not_decided("no_arms", task=results.task)
    done = sum(t.status == "done" for t in results.trials)
    if done:
        return not_decided("none_scored", task=results.task, done=Counted(done, "trial"))
    return not_decided(
        "none_finished", task=results.task, failed=len(results.failed), waiting=results.waiting
    )


def _all_over_limit(results: TaskResults) -> Verdict:
    excluded, limit = results.choice.excluded, results.objective.max_forgetting or 0.0
    least = min(excluded, key=lambda arm: arm.summary.validation_forgetting or 0.0)
    firm = len(excluded) == len(results.arms) and all(
        results.is_firm(arm.summary)
        and arm.summary.forgetting is not None
        and (arm.summary.forgetting.low or 0.0) > limit
        for arm in results.arms
    )
    text = headline(
        "all_over_limit",
        task=results.task,
        arm=arm_name(least.summary),
        limit=Measured(limit, results.retention_unit),
        forgetting=Measured(least.summary.validation_forgetting or 0.0, results.retention_unit),
    )
    return Verdict("do_not_fine_tune", confidence(firm), text, least)


def _too_little_data(results: TaskResults, arm: Arm) -> Verdict:
    gain = arm.summary.gain
    if gain is None:
        return not_decided("no_shared_items", arm, task=results.task)
    if gain.n < FEWEST_ITEMS:
        return not_decided("few_items", arm, task=results.task, items=Counted(gain.n, "item"))
    return not_decided(
        "equal_changes",
        arm,
        task=results.task,
        items=Counted(gain.n, "test item"),
        gain=Measured(gain, results.unit),
    )


def _no_gain_shown(results: TaskResults, chosen: Candidate, best: Candidate) -> Verdict:
    """Not decided while some arm's gain may matter; otherwise do not fine-tune."""
    arms = {"arm": arm_name(chosen.arm.summary), "best": arm_name(best.arm.summary)}
    tested = clause("one_tested" if chosen is best else "two_tested", **arms)
    scored = [arm.summary for arm in results.arms if arm.summary.gain is not None]
    gains = [arm.gain for arm in scored if arm.gain is not None]
    margin = results.objective.margin
    if max(gain.value for gain in gains) >= margin:
        return not_decided("gain_unclear", chosen.arm, task=results.task, tested=tested)
    upper_ends = [gain.high for gain in gains if gain.high is not None]
    highest = max(upper_ends) if len(upper_ends) == len(gains) else None
    all_scored = len(scored) == len(results.arms)
    ruled_out = highest is not None and highest < margin
    if highest is None:
        possible = clause("gain_unknown")
    elif ruled_out:
        which = "every arm" if all_scored else "every arm that was scored"
        possible = clause("gain_ruled_out", margin=Measured(margin, results.unit), arms=which)
    else:
        possible = clause("gain_possible", highest=Measured(highest, results.unit))
    firm = ruled_out and all_scored and all(results.is_firm(arm) for arm in scored)
    text = headline("no_gain", task=results.task, tested=tested, possible=possible)
    return Verdict("do_not_fine_tune", confidence(firm), text, chosen.arm)


def _not_worth_it(results: TaskResults, arm: Arm) -> Verdict:
    """The winner gains, but forgets more than that by the study's weights."""
    net = results.net_gain(arm)
    clearly_negative = net is not None and net.high is not None and net.high < 0
    text = headline(
        "not_worth_it",
        task=results.task,
        formula=results.objective.formula,
        arm=arm_name(arm.summary),
        changes=describe_changes(results, arm.summary),
    )
    firm = clearly_negative and results.is_firm(arm.summary)
    return Verdict("do_not_fine_tune", confidence(firm), text, arm)


def _use_lora(results: TaskResults, arm: Arm) -> Verdict:
    text = headline(
        "use",
        task=results.task,
        arm=arm_name(arm.summary),
        result=describe_result(results, arm.summary),
    )
    return Verdict("use", confidence(results.is_firm(arm.summary)), text, arm)


def _full_or_lora(results: TaskResults, full: Candidate) -> Verdict:
    """Full fine-tuning led on the validation split: recommend it only if LoRA is clearly worse."""
    lora, small = results.choice.best_lora, results.choice.small_lora
    if lora is None:
        firm = not results.choice.passed_over and results.is_firm(full.arm.summary)
        return _use_full(results, full.arm, clause("lora_missing"), firm)
    name = arm_name(lora.arm.summary)
    if _is_clearly_worse(results, lora.arm, full.arm):
        why = clause("lora_worse", lora=name, changes=describe_changes(results, lora.arm.summary))
        firm = not results.choice.passed_over and results.is_firm(full.arm.summary)
        return _use_full(results, full.arm, why, firm)
    if _falls_short(results, lora.arm, full.arm):
        changes = describe_changes(results, lora.arm.summary)
        why = clause("lora_scores_lower", lora=name, changes=changes)
        return _use_full(results, full.arm, why, firm=False)
    if small is None or _falls_short(results, small.arm, full.arm):
        small = lora
    winner = _lora_shown_to_gain(results, small, lora)
    if winner is None:
        return _use_full(results, full.arm, clause("lora_unproven", lora=name), firm=False)
    if lora.utility <= 0:
        why = clause("lora_not_worth_it", lora=name, formula=results.objective.formula)
        return _use_full(results, full.arm, why, firm=False)
    # The test split does not tell the two apart, so the cheaper one is recommended.
    text = headline(
        "use_despite_full",
        task=results.task,
        arm=arm_name(winner.arm.summary),
        result=describe_result(results, winner.arm.summary),
    )
    return Verdict("use", "tentative", text, winner.arm)


def _use_full(results: TaskResults, arm: Arm, why: str, firm: bool) -> Verdict:
    text = headline(
        "use_full",
        task=results.task,
        arm=arm_name(arm.summary),
        result=describe_result(results, arm.summary),
        why=why,
    )
    return Verdict("use_full", confidence(firm), text, arm)


def _is_clearly_worse(results: TaskResults, lora: Arm, full: Arm) -> bool:
    """LoRA's net gain is lower by the margin, and its whole interval is below zero."""
    net = net_difference(results.study, lora, full, results.objective.weights)
    if net is None or net.high is None:
        return False
    return net.value < -results.objective.margin and net.high < 0


def _falls_short(results: TaskResults, lora: Arm, full: Arm) -> bool:
    """Clearly worse, or the net gain is lower by the margin and the score alone is clearly lower.

    Forgetting may be too noisy for a clear net gain. Full fine-tuning is then recommended, but not
    firmly.
    """
    net = net_difference(results.study, lora, full, results.objective.weights)
    gap = arm_difference(results.study, lora, full, results.task)
    if net is None or net.value >= -results.objective.margin:
        return False
    return any(e is not None and e.high is not None and e.high < 0 for e in (net, gap))


def _lora_shown_to_gain(
    results: TaskResults, small: Candidate, lora: Candidate
) -> Candidate | None:
    """The first of two LoRA arms that beats the base, Holm over both on every training task."""
    pair = [small] if small is lora else [small, lora]
    gains = [c.arm.summary.gain for c in pair]
    adjusted = holm([1.0 if g is None or g.p is None else g.p for g in gains])
    for candidate, gain, p in zip(pair, gains, adjusted, strict=True):
        if gain is not None and gain.value > 0 and p * results.num_tasks < ALPHA:
            return candidate
    return None
