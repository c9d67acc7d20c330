"""Decide one training task: a LoRA arm, full fine-tuning, no fine-tuning, or not decided.

An *arm* is one configuration (method, rank, learning rate, ...) trained with several seeds. Two
arms were picked on the validation split (``select.py``): *best* has the highest utility, which is
gain minus forgetting minus cost by the study's weights, and *chosen* is the smallest LoRA rank
whose utility is within the margin of the best. Here the test split says whether they hold:

1. Are there enough data to decide anything?
2. Does the chosen arm, or else the best one, beat the base significantly?
3. Is its gain worth what it forgets?
4. If it is full fine-tuning: is LoRA clearly worse?
5. Does the arm's forgetting on the test split confirm the choice (``confirm_on_test.py``)?

A ``firm`` answer is clear by its intervals and rests on three complete seeds or more; any other is
``tentative``. The exact rule is in docs/science.md, "From scores to a decision".
"""

from rankscope.advise.arms import Arm
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.confirm_on_test import confirm_on_test
from rankscope.advise.headlines import clause
from rankscope.advise.messages import Counted, Field, arm_name
from rankscope.advise.select import Candidate
from rankscope.advise.statistics.significance import ALPHA, FEWEST_ITEMS, holm
from rankscope.advise.task_results import TaskResults
from rankscope.advise.verdict import Verdict, conclude, describe_changes, firm_if
from rankscope.records import Confidence


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
        confidence = firm_if(results.is_firm(winner.arm.summary))
        verdict = conclude(results, "use", confidence, "use", winner.arm)
    return confirm_on_test(results, verdict)


def _nothing_to_choose_from(results: TaskResults) -> Verdict:
    """No arm has a validation score, or every arm exceeds the limit on forgetting."""
    if results.choice.excluded:
        return _all_over_limit(results)
    done = sum(t.status == "done" for t in results.trials)
    name = "none_scored" if done else "none_finished" if results.trials else "no_arms"
    counts = {"failed": len(results.failed), "waiting": results.waiting}
    return conclude(
        results, "not_decided", "none", name, None, done=Counted(done, "trial"), **counts
    )


def _all_over_limit(results: TaskResults) -> Verdict:
    excluded, limit = results.choice.excluded, results.objective.max_forgetting or 0.0
    least = min(excluded, key=lambda arm: arm.summary.validation_forgetting or 0.0)
    is_clear = len(excluded) == len(results.arms) and all(
        results.is_firm(arm.summary)
        and arm.summary.forgetting is not None
        and (arm.summary.forgetting.low or 0.0) > limit
        for arm in results.arms
    )
    fields = {
        "limit": results.retained(limit),
        "forgetting": results.retained(least.summary.validation_forgetting or 0.0),
    }
    return conclude(
        results, "do_not_fine_tune", firm_if(is_clear), "all_over_limit", least, **fields
    )


def _too_little_data(results: TaskResults, arm: Arm) -> Verdict:
    gain = arm.summary.gain
    if gain is None:
        return conclude(results, "not_decided", "none", "no_shared_items", arm)
    name = "few_items" if gain.n < FEWEST_ITEMS else "equal_changes"
    items, gained = Counted(gain.n, "test item"), results.score(gain)
    return conclude(results, "not_decided", "none", name, arm, items=items, gain=gained)


def _no_gain_shown(results: TaskResults, chosen: Candidate, best: Candidate) -> Verdict:
    """Not decided while some arm's gain may matter; otherwise do not fine-tune."""
    names = {"arm": arm_name(chosen.arm.summary), "best": arm_name(best.arm.summary)}
    tested = clause("one_tested" if chosen is best else "two_tested", **names)
    scored = [arm.summary for arm in results.arms if arm.summary.gain is not None]
    gains = [arm.gain for arm in scored if arm.gain is not None]
    margin = results.objective.margin
    if max(gain.value for gain in gains) >= margin:
        return conclude(results, "not_decided", "none", "gain_unclear", chosen.arm, tested=tested)
    upper_ends = [gain.high for gain in gains if gain.high is not None]
    highest = max(upper_ends) if len(upper_ends) == len(gains) else None
    all_scored = len(scored) == len(results.arms)
    is_ruled_out = highest is not None and highest < margin
    if highest is None:
        possible = clause("gain_unknown")
    elif is_ruled_out:
        which = "every arm" if all_scored else "every arm that was scored"
        possible = clause("gain_ruled_out", margin=results.score(margin), arms=which)
    else:
        possible = clause("gain_possible", highest=results.score(highest))
    confidence = firm_if(is_ruled_out and all_scored and all(map(results.is_firm, scored)))
    fields = {"tested": tested, "possible": possible}
    return conclude(results, "do_not_fine_tune", confidence, "no_gain", chosen.arm, **fields)


def _not_worth_it(results: TaskResults, arm: Arm) -> Verdict:
    """The winner gains, but forgets more than that by the study's weights."""
    net = results.net_gain(arm)
    is_clear = net is not None and net.high is not None and net.high < 0
    confidence = firm_if(is_clear and results.is_firm(arm.summary))
    return conclude(results, "do_not_fine_tune", confidence, "not_worth_it", arm)


def _full_or_lora(results: TaskResults, full: Candidate) -> Verdict:
    """Full fine-tuning led on the validation split: recommend it only if LoRA is clearly worse."""
    lora, small = results.choice.best_lora, results.choice.small_lora
    confidence = firm_if(not results.choice.passed_over and results.is_firm(full.arm.summary))
    if lora is None:
        return _use_full(results, full.arm, confidence, "lora_missing")
    if _is_clearly_worse(results, lora.arm, full.arm):
        return _use_full(results, full.arm, confidence, "lora_worse", lora.arm)
    if _falls_short(results, lora.arm, full.arm):
        return _use_full(results, full.arm, "tentative", "lora_scores_lower", lora.arm)
    if small is None or _falls_short(results, small.arm, full.arm):
        small = lora
    winner = _lora_shown_to_gain(results, small, lora)
    if winner is None:
        return _use_full(results, full.arm, "tentative", "lora_unproven", lora.arm)
    if lora.utility <= 0:
        return _use_full(results, full.arm, "tentative", "lora_not_worth_it", lora.arm)
    # The test split does not tell the two apart, so the cheaper one is recommended.
    return conclude(results, "use", "tentative", "use_despite_full", winner.arm)


def _use_full(
    results: TaskResults, full: Arm, confidence: Confidence, why: str, lora: Arm | None = None
) -> Verdict:
    fields: dict[str, Field] = {"formula": results.objective.formula}
    if lora is not None:
        fields |= {
            "lora": arm_name(lora.summary),
            "changes": describe_changes(results, lora.summary),
        }
    reason = clause(why, **fields)
    return conclude(results, "use_full", confidence, "use_full", full, why=reason)


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
