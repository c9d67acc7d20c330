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
also needs that no tried arm can be better by more than the margin (``recommend.py``). Otherwise it
is ``tentative``; ``not_decided`` has the confidence ``none``. The exact rule is in docs/science.md,
"From scores to a decision".
"""

from dataclasses import dataclass, replace
from typing import Literal

from rankscope.advise.arms import Arm
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.messages import arm_name, verdict_name
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


def decide(results: TaskResults) -> Verdict:
    verdict = _decide_by_scores(results)
    subject = verdict.subject
    if verdict.decision == "not_decided" or subject is None or subject.summary.gain is None:
        return verdict
    changes, seeds = results.changes_text(subject.summary), subject.summary.seeds
    if subject.summary.gain.n < FEW_ITEMS and seeds < FEWEST_SEEDS:
        counted = f"{count(subject.summary.gain.n, 'test item')} and {count(seeds, 'seed')}"
        return _not_decided(
            subject,
            f"{counted} are too few",
            f"{counted} cannot show what other items and seeds would give. Measured so far, "
            f"{arm_name(subject.summary)}: {changes}.",
        )
    if not results.is_barely_trained(subject):
        return verdict
    steps, trend = count(subject.steps, "step"), subject.loss_trend
    trained = f"{arm_name(subject.summary)} was trained for {steps}"
    if trend is None or not trend.is_falling:
        return _not_decided(
            subject,
            f"only {steps}",
            f"{trained}, too few to see whether its loss has leveled off, so the order of the arms "
            f"can change: {changes}.",
        )
    return _not_decided(
        subject,
        f"{steps}, and the loss still falls",
        f"{trained} and its loss still falls, from {trend.before:.3g} to {trend.after:.3g}, so the "
        f"order of the arms can change: {changes}.",
    )


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
        verdict = _use(results, winner, confidence)
    return _confirm_on_test(results, verdict)


def _not_decided(subject: Arm | None, because: str, explanation: str) -> Verdict:
    return Verdict("not_decided", "none", because, explanation, subject)


def _firm_if(condition: bool) -> Confidence:
    return "firm" if condition else "tentative"


def _nothing_to_choose_from(results: TaskResults) -> Verdict:
    """No arm has a validation score, or every arm that has one exceeds the limit on forgetting."""
    task, done = results.task, len(finished_trials(results.trials))
    if results.choice.excluded:
        return _all_over_limit(results)
    if not results.trials:
        return _not_decided(None, "no arm was trained", f"No arm has scores on {task}.")
    if not done:
        return _not_decided(
            None,
            "no trial has finished",
            f"Of the trials on {task}, {len(results.failed)} failed and {results.waiting} are "
            "still to run.",
        )
    return _not_decided(
        None,
        "no arm has validation scores",
        f"{count(done, 'trial')} on {task} finished without them. Run the study again to evaluate.",
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
    forgetting = results.retained(least.summary.validation_forgetting or 0.0)
    return Verdict(
        "do_not_fine_tune",
        _firm_if(is_clear),
        "every arm forgets too much",
        f"Each arm forgets more than the {results.retained(limit):amount} allowed. "
        f"{arm_name(least.summary)} forgets least and loses {forgetting:amount} on the validation "
        "split. A lower learning rate, fewer steps or a scaled-down adapter may stay within the "
        "limit.",
        least,
    )


def _too_little_data(results: TaskResults, arm: Arm) -> Verdict:
    gain, task = arm.summary.gain, results.task
    if gain is None:
        return _not_decided(
            arm,
            "no test item has both scores",
            f"The base and {arm_name(arm.summary)} share no scored test item of {task}.",
        )
    items = count(gain.n, "test item")
    if gain.n < FEWEST_ITEMS:
        return _not_decided(
            arm, f"only {items}", f"No test can decide with only {items} of {task}."
        )
    return _not_decided(
        arm,
        "every test item changed alike",
        f"Of {task}, all {items} changed by the same {results.score(gain):change}, so the spread "
        "over other items is unknown. Check the scores first.",
    )


def _no_gain_shown(results: TaskResults, chosen: Candidate, best: Candidate) -> Verdict:
    """Not decided if some arm's measured gain reaches the margin; otherwise do not fine-tune."""
    arm = arm_name(chosen.arm.summary)
    tested = f"the arm chosen on the validation split, {arm}, is not shown to beat the base"
    if chosen is not best:
        tested = (
            f"the arm chosen on the validation split, {arm}, and the arm with the highest net gain "
            f"there, {arm_name(best.arm.summary)}, are not shown to beat the base"
        )
    scored = [arm.summary for arm in results.arms if arm.summary.gain is not None]
    gains = [arm.gain for arm in scored if arm.gain is not None]
    margin = results.objective.margin
    if max(gain.value for gain in gains) >= margin:
        return _not_decided(
            chosen.arm,
            "no arm is shown to beat the base",
            f"The data cannot tell whether fine-tuning helps on {results.task}: {tested}.",
        )
    upper_ends = [gain.high for gain in gains if gain.high is not None]
    highest = max(upper_ends) if len(upper_ends) == len(gains) else None
    all_scored = len(scored) == len(results.arms)
    is_ruled_out = highest is not None and highest < margin
    if highest is None:
        possible = "how large a gain is possible is unknown"
    elif is_ruled_out:
        which = "every arm" if all_scored else "every arm that was scored"
        possible = f"gains of {results.score(margin):amount} are ruled out for {which}"
    else:
        possible = f"a gain up to {results.score(highest):amount} cannot be ruled out"
    is_clear = is_ruled_out and all_scored and all(map(results.is_firm, scored))
    return Verdict(
        "do_not_fine_tune",
        _firm_if(is_clear),
        "no arm beats the base",
        f"With these settings {tested}; {possible}.",
        chosen.arm,
    )


def _not_worth_it(results: TaskResults, arm: Arm) -> Verdict:
    """The winner gains, but forgetting and cost outweigh its gain on the validation split."""
    net, summary = arm.summary.net_gain, arm.summary
    return Verdict(
        "do_not_fine_tune",
        _firm_if(net is not None and net.is_below(0) and results.is_firm(summary)),
        "forgetting outweighs the gain",
        f"By this study's weights ({results.objective.formula}) no arm is worth it on "
        f"{results.task}, not even {arm_name(summary)}: {results.changes_text(summary)}.",
        arm,
    )


def _full_or_lora(results: TaskResults, full: Candidate) -> Verdict:
    """Full fine-tuning led on the validation split: recommend it unless LoRA can replace it.

    To replace it, LoRA must not be clearly worse, must beat the base, and needs a utility above 0,
    even if forgetting has no weight.
    """
    lora, small = results.choice.best_lora, results.choice.small_lora
    is_firm = not results.choice.passed_over and results.is_firm(full.arm.summary)
    if lora is None:
        return _use_full(results, full, "no LoRA arm was left to compare", _firm_if(is_firm))
    name, changes = arm_name(lora.arm.summary), results.changes_text(lora.arm.summary)
    shortfall = _shortfall(results, lora, full)
    if shortfall == "net":
        return _use_full(results, full, f"the best LoRA arm, {name}: {changes}", _firm_if(is_firm))
    if shortfall == "score":
        why = (
            f"the best LoRA arm, {name}: {changes}; its score is clearly lower, but by the study's "
            "weights the difference is not clear of zero"
        )
        return _use_full(results, full, why)
    if small is None or (small is not lora and _shortfall(results, small, full)):
        small = lora
    winner = _lora_shown_to_gain(results, small, lora)
    best = f"the best LoRA arm on the validation split, {name},"
    if winner is None:
        return _use_full(results, full, f"{best} is not shown to beat the base")
    if lora.utility <= 0:
        why = f"{best} is not worth it by this study's weights ({results.objective.formula})"
        return _use_full(results, full, why)
    # The test split shows no clear difference, so the arm with fewer parameters is recommended.
    led = (
        " Full fine-tuning led on the validation split; the test split does not show that it is "
        "better by more than the margin."
    )
    return _use(results, winner, "tentative", led)


def _use(results: TaskResults, lora: Candidate, confidence: Confidence, more: str = "") -> Verdict:
    arm = lora.arm.summary
    explanation = f"{arm_name(arm)}: {results.result_text(arm)}.{more}"
    return Verdict("use", confidence, "", explanation, lora.arm)


def _use_full(
    results: TaskResults, full: Candidate, why: str, confidence: Confidence = "tentative"
) -> Verdict:
    arm = full.arm.summary
    explanation = f"{arm_name(arm)}: {results.result_text(arm)}; {why}."
    return Verdict("use_full", confidence, "", explanation, full.arm)


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
    name, changes = arm_name(arm), results.changes_text(arm)
    if limit is not None and forgetting is not None and forgetting.value > limit:
        return _not_decided(
            subject,
            "forgetting exceeds the limit on the test split",
            f"{name}, chosen on the validation split, loses {results.retained(forgetting):amount} "
            f"on the retention tasks of the test split; {results.retained(limit):amount} is "
            "allowed.",
        )
    if net is not None and net.value <= 0:
        if net.is_below(0):
            return Verdict(
                "do_not_fine_tune",
                "tentative",
                "forgetting outweighs the gain",
                f"By this study's weights ({results.objective.formula}) {name}, chosen on the "
                f"validation split, is not worth it on {results.task}: {changes}.",
                subject,
            )
        return _not_decided(
            subject, "the gain may not outweigh the forgetting", f"{name}: {changes}."
        )
    return replace(verdict, confidence="tentative") if unconfirmed(results, arm) else verdict


def unconfirmed(results: TaskResults, arm: ArmSummary) -> list[str]:
    """What the test split leaves open about an arm's forgetting."""
    limit, net = results.objective.max_forgetting, arm.net_gain
    high = None if arm.forgetting is None else arm.forgetting.high
    found = {
        "the interval reaches zero": net is not None and not net.is_above(0),
        "it may forget more than the study allows": limit is not None
        and (high is None or high > limit),
        "its forgetting was not scored": results.lacks_retention_scores(arm),
        "the right answers became less likely on retention tasks on which the base is not shown to "
        "be above chance": results.forgets_below_chance(arm),
    }
    return [text for text, applies in found.items() if applies]
