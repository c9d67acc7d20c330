"""Decide for one training task: an adapter, full fine-tuning, no fine-tuning, or not decided.

An *arm* is one configuration (method, rank, learning rate, ...) trained with several seeds.
``select.py`` names two arms by their *utility* on the validation split: gain minus forgetting minus
cost, by the study's weights.

- *best* has the highest utility.
- *chosen* is the smallest LoRA rank whose utility is within the margin of the best, and above 0 if
  the best's is. Without such a rank, chosen is the best arm, which may be full fine-tuning.

Arms over the limit on forgetting on the validation split are excluded first. The steps below use
the test split unless they name the validation split:

1. Are there enough test items to decide anything?
2. Does the chosen arm beat the base significantly? If not, does the best arm? The first
   that does is the *winner*.
3. If forgetting has a weight: is the winner's utility, of the validation split, above 0?
4. If the winner is full fine-tuning: is LoRA missing, clearly worse, not shown to beat the base,
   or without a utility above 0 on the validation split? If none of these, LoRA is recommended.
5. Is the recommended arm's gain worth its forgetting, and is the limit kept?
6. Are the items and seeds, or the training steps, too few to say anything yet?

A decision is ``firm`` if its intervals are clear, it rests on three complete seeds or more, no
trial of the task is still to run, and training saw at most 1 % of the test rows; a recommendation
also needs that no tried arm can be better by more than the margin (``claims.py``). Otherwise it is
``tentative``; ``not_decided`` has the confidence ``none``. The exact rule is in docs/science.md,
"From scores to a decision".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rankscope.advise.arms import Arm
from rankscope.advise.catalogue import OUTCOMES
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.messages import Counted, Field, arm_name, capitalized, clause, verdict_name
from rankscope.advise.select import Candidate
from rankscope.advise.statistics.significance import ALPHA, FEWEST_ITEMS, holm
from rankscope.advise.task_results import FEW_ITEMS, TaskResults
from rankscope.formatting import count
from rankscope.records import FEWEST_SEEDS, ArmSummary, Confidence, Decision, finished_trials


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision before its reasons are written."""

    decision: Decision
    confidence: Confidence
    because: str  # Why nothing is recommended, in a few words
    explanation: str
    subject: Arm | None
    """The arm that the reasons describe: the recommended one, or the closest to it."""

    @property
    def recommends_subject(self) -> bool:
        return self.decision in ("use", "use_full")

    @property
    def text(self) -> str:
        """The answer in at most twelve words; the verb follows the confidence."""
        if self.decision == "not_decided" or self.subject is None:
            return f"Cannot tell yet: {self.because}."
        does, name = "Use", verdict_name(self.subject.summary)
        if self.decision == "do_not_fine_tune":
            does, name = "Do not fine-tune:", self.because
        if self.confidence != "firm":
            does = f"Probably {does[0].lower()}{does[1:]}"
        return f"{does} {name}."


def undecidable_notes(num_items: Mapping[str, int], num_seeds: int) -> list[str]:
    """A note on each task whose test items allow no answer, whatever is trained."""
    notes = []
    for task, items in num_items.items():
        if items < FEWEST_ITEMS:
            needed = f"no test can decide with fewer than {FEWEST_ITEMS}"
        elif items < FEW_ITEMS and num_seeds < FEWEST_SEEDS:
            needed = f"an answer needs {FEW_ITEMS} test items, or {FEWEST_SEEDS} seeds"
        else:
            continue
        found = f"{count(items, 'test item')} and {count(num_seeds, 'seed')}"
        notes.append(f"{task}: {found} cannot show which arm is best; {needed}")
    return notes


def decide(results: TaskResults) -> Verdict:
    verdict = _decide_by_scores(results)
    subject = verdict.subject
    if verdict.decision == "not_decided" or subject is None or subject.summary.gain is None:
        return verdict
    items, seeds = subject.summary.gain.n, subject.summary.seeds
    if items < FEW_ITEMS and seeds < FEWEST_SEEDS:
        counted = {"items": Counted(items, "test item"), "seeds": Counted(seeds, "seed")}
        return _not_decided(results, subject, outcome="few_data", **counted)
    if results.is_barely_trained(subject):
        steps, trend = Counted(subject.steps, "step"), subject.loss_trend
        if trend is None or not trend.is_falling:
            return _not_decided(results, subject, outcome="very_few_steps", steps=steps)
        losses = {"loss_before": trend.before, "loss_after": trend.after}
        return _not_decided(results, subject, outcome="few_steps", steps=steps, **losses)
    return verdict


def _decide_by_scores(results: TaskResults) -> Verdict:
    chosen, best = results.choice.chosen, results.choice.best
    if chosen is None or best is None:
        return _nothing_to_choose_from(results)
    gain = chosen.arm.summary.gain
    if gain is None or gain.low is None or gain.p is None or gain.n < FEWEST_ITEMS:
        return _too_little_data(results, chosen.arm)
    # The best arm gets a second try; Holm's correction covers both.
    winner = next((c for c in (chosen, best) if results.is_shown_to_gain(c.arm.summary)), None)
    if winner is None:
        return _no_gain_shown(results, chosen, best)
    # Without a weight on forgetting, the gain shown on the test split is reason enough.
    if winner.utility <= 0 and results.objective.retention > 0:
        return _not_worth_it(results, winner.arm)
    if winner.arm.summary.is_full:
        verdict = _full_or_lora(results, winner)
    else:
        confidence = _firm_if(results.is_firm(winner.arm.summary))
        verdict = _conclude(results, "use", confidence, winner.arm, outcome="use")
    return _confirm_on_test(results, verdict)


def _conclude(
    results: TaskResults,
    decision: Decision,
    confidence: Confidence,
    subject: Arm | None,
    *,
    outcome: str,
    **fields: Field,
) -> Verdict:
    """A verdict with an outcome of the catalogue; task, formula and arm are filled in here."""
    fields |= {"task": results.task, "formula": results.objective.formula}
    if subject is not None:
        arm = subject.summary
        fields |= {"arm": arm_name(arm), "changes": _changes(results, arm)}
        fields["result"] = _result(results, arm)
    because, explanation = (text.format_map(fields) for text in OUTCOMES[outcome].values())
    return Verdict(decision, confidence, because, capitalized(explanation), subject)


def _not_decided(
    results: TaskResults, subject: Arm | None, *, outcome: str, **fields: Field
) -> Verdict:
    return _conclude(results, "not_decided", "none", subject, outcome=outcome, **fields)


def _firm_if(condition: bool) -> Confidence:
    return "firm" if condition else "tentative"


def _changes(results: TaskResults, arm: ArmSummary) -> str:
    parts = []
    if arm.gain is not None:
        parts.append(clause("gain", gain=results.score(arm.gain)))
    if results.shown_forgetting(arm) is not None:
        parts.append(_retention(results, arm))
    return (" and ".join(parts) + _net(results, arm)) or "not scored on the test split"


def _result(results: TaskResults, arm: ArmSummary) -> str:
    if arm.score is None or arm.gain is None:
        return "its test score is missing"
    text = clause("score", score=results.score(arm.score), gain=results.score(arm.gain))
    if results.shown_forgetting(arm) is None:
        return text + clause("retention_unknown")
    return f"{text}, and {_retention(results, arm)}{_net(results, arm)}"


def _net(results: TaskResults, arm: ArmSummary) -> str:
    return "" if arm.net_gain is None else clause("net", net=results.net(arm.net_gain))


def _retention(results: TaskResults, arm: ArmSummary) -> str:
    forgetting = results.shown_forgetting(arm)
    assert forgetting is not None
    name = "retention" if results.is_settled(arm) else "retention_unsettled"
    if name != "retention" and results.forgot_in_each_seed(arm):
        name = "retention_each_seed"
    return clause(name, forgetting=forgetting)


def _nothing_to_choose_from(results: TaskResults) -> Verdict:
    """No arm has a validation score, or every arm that has one exceeds the limit on forgetting."""
    if results.choice.excluded:
        return _all_over_limit(results)
    done = len(finished_trials(results.trials))
    return _not_decided(
        results,
        None,
        outcome="none_scored" if done else "none_finished" if results.trials else "no_arms",
        done=Counted(done, "trial"),
        failed=len(results.failed),
        waiting=results.waiting,
    )


def _all_over_limit(results: TaskResults) -> Verdict:
    excluded, limit = results.choice.excluded, results.objective.max_forgetting or 0.0
    least = min(excluded, key=lambda arm: arm.summary.validation_forgetting or 0.0)
    is_clear = len(excluded) == len(results.arms) and all(
        results.is_firm(arm.summary)
        and arm.summary.forgetting is not None
        and arm.summary.forgetting.is_above(limit)
        for arm in results.arms
    )
    return _conclude(
        results,
        "do_not_fine_tune",
        _firm_if(is_clear),
        least,
        outcome="all_over_limit",
        limit=results.retained(limit),
        forgetting=results.retained(least.summary.validation_forgetting or 0.0),
    )


def _too_little_data(results: TaskResults, arm: Arm) -> Verdict:
    gain = arm.summary.gain
    if gain is None:
        return _not_decided(results, arm, outcome="no_shared_items")
    outcome = "few_items" if gain.n < FEWEST_ITEMS else "equal_changes"
    items = Counted(gain.n, "test item")
    return _not_decided(results, arm, outcome=outcome, items=items, gain=results.score(gain))


def _no_gain_shown(results: TaskResults, chosen: Candidate, best: Candidate) -> Verdict:
    """Not decided if some arm's measured gain reaches the margin; otherwise do not fine-tune."""
    names = {"arm": arm_name(chosen.arm.summary), "best": arm_name(best.arm.summary)}
    tested = clause("one_tested" if chosen is best else "two_tested", **names)
    scored = [arm.summary for arm in results.arms if arm.summary.gain is not None]
    gains = [arm.gain for arm in scored if arm.gain is not None]
    margin = results.objective.margin
    if max(gain.value for gain in gains) >= margin:
        return _not_decided(results, chosen.arm, outcome="gain_unclear", tested=tested)
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
    confidence = _firm_if(is_ruled_out and all_scored and all(map(results.is_firm, scored)))
    return _conclude(
        results,
        "do_not_fine_tune",
        confidence,
        chosen.arm,
        outcome="no_gain",
        tested=tested,
        possible=possible,
    )


def _not_worth_it(results: TaskResults, arm: Arm) -> Verdict:
    """The winner gains, but forgetting and cost outweigh its gain on the validation split."""
    net = arm.summary.net_gain
    is_clear = net is not None and net.is_below(0)
    confidence = _firm_if(is_clear and results.is_firm(arm.summary))
    return _conclude(results, "do_not_fine_tune", confidence, arm, outcome="not_worth_it")


def _full_or_lora(results: TaskResults, full: Candidate) -> Verdict:
    """Full fine-tuning led on the validation split: recommend it unless LoRA can replace it.

    To replace it, LoRA must not be clearly worse, must beat the base, and needs a utility above 0,
    even if forgetting has no weight.
    """
    lora, small = results.choice.best_lora, results.choice.small_lora
    if lora is None or (shortfall := _shortfall(results, lora, full)) == "net":
        is_firm = not results.choice.passed_over and results.is_firm(full.arm.summary)
        reason = "lora_missing" if lora is None else "lora_worse"
        return _use_full(results, full, _firm_if(is_firm), reason, lora)
    if shortfall == "score":
        return _use_full(results, full, "tentative", "lora_scores_lower", lora)
    if small is None or (small is not lora and _shortfall(results, small, full)):
        small = lora
    winner = _lora_shown_to_gain(results, small, lora)
    if winner is None:
        return _use_full(results, full, "tentative", "lora_unproven", lora)
    if lora.utility <= 0:
        return _use_full(results, full, "tentative", "lora_not_worth_it", lora)
    # The test split shows no clear difference, so the arm with fewer parameters is recommended.
    return _conclude(results, "use", "tentative", winner.arm, outcome="use_despite_full")


def _use_full(
    results: TaskResults,
    full: Candidate,
    confidence: Confidence,
    reason: str,
    lora: Candidate | None,
) -> Verdict:
    fields: dict[str, Field] = {"formula": results.objective.formula}
    if lora is not None:
        arm = lora.arm.summary
        fields |= {"lora": arm_name(arm), "changes": _changes(results, arm)}
    why = clause(reason, **fields)
    return _conclude(results, "use_full", confidence, full.arm, outcome="use_full", why=why)


def _shortfall(
    results: TaskResults, lora: Candidate, full: Candidate
) -> Literal["net", "score"] | None:
    """What shows on the test split that LoRA is worse; None unless its net gain is lower by more
    than the margin.

    ``net``: the whole interval of the net difference is below 0. ``score``: only that of the score
    difference is, because forgetting may be too noisy for a clear net gain.
    """
    net = net_difference(results.study, lora.arm, full.arm, results.objective.weights)
    if net is None or net.value >= -results.objective.margin:
        return None
    if net.is_below(0):
        return "net"
    gap = arm_difference(results.study, lora.arm, full.arm, results.task)
    return "score" if gap is not None and gap.is_below(0) else None


def _lora_shown_to_gain(
    results: TaskResults, small: Candidate, lora: Candidate
) -> Candidate | None:
    """The first of the two LoRA arms that beats the base.

    Holm's correction covers the two, and Bonferroni's the training tasks.
    """
    pair = [small] if small is lora else [small, lora]
    gains = [c.arm.summary.gain for c in pair]
    adjusted = holm([None if g is None else g.p for g in gains])
    for candidate, gain, p in zip(pair, gains, adjusted, strict=True):
        if gain is not None and gain.value > 0 and p * results.num_tasks < ALPHA:
            return candidate
    return None


def _confirm_on_test(results: TaskResults, verdict: Verdict) -> Verdict:
    """Keep the recommendation, make it tentative, or withdraw it, by forgetting on the test split.

    The validation split, which chose the arm, may have seen too little forgetting by chance. Only
    the recommended arm is examined: replacing it by another one that the test split favors would
    overrate that arm.
    """
    subject = verdict.subject
    if subject is None:
        return verdict
    arm, net = subject.summary, subject.summary.net_gain
    limit, forgetting = results.objective.max_forgetting, arm.forgetting
    if limit is not None and forgetting is not None and forgetting.value > limit:
        fields = {"forgetting": results.retained(forgetting), "limit": results.retained(limit)}
        return _not_decided(results, subject, outcome="over_limit_on_test", **fields)
    if net is not None and net.value <= 0:
        if net.is_below(0):
            outcome = "not_worth_it_on_test"
            return _conclude(results, "do_not_fine_tune", "tentative", subject, outcome=outcome)
        return _not_decided(results, subject, outcome="worth_unclear")
    if not unconfirmed(results, arm):
        return verdict
    return replace(verdict, confidence="tentative")


def unconfirmed(results: TaskResults, arm: ArmSummary) -> list[str]:
    """What the test split leaves open about an arm's forgetting, as names of clauses."""
    limit, net = results.objective.max_forgetting, arm.net_gain
    high = None if arm.forgetting is None else arm.forgetting.high
    found = {
        "net_reaches_zero": net is not None and not net.is_above(0),
        "over_limit_possible": limit is not None and (high is None or high > limit),
        "forgetting_unscored": results.lacks_retention_scores(arm),
        "forgetting_below_chance": results.forgets_below_chance(arm),
    }
    return [name for name, applies in found.items() if applies]
