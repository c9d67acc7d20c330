"""The recommendation: which arm to use on each training task, or that none is worth it, and why.

A pure function of the records. The validation split chooses an arm (``select.py``); the test split
decides whether it beats the base (``decide.py``) and supplies every number quoted. The rule is in
docs/science.md, "From scores to a decision".
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from rankscope.advise.arms import Arm, base_estimates, subject_changes, summarize_arms
from rankscope.advise.checks import trust_checks
from rankscope.advise.comparisons import compare_candidates, net_difference
from rankscope.advise.decide import Verdict, decide, unconfirmed
from rankscope.advise.messages import arm_name, capitalized, verdict_name
from rankscope.advise.mitigation import compare_mitigations
from rankscope.advise.model_scores import model_scores
from rankscope.advise.next_steps import next_steps
from rankscope.advise.rank_curves import compare_rank_curves
from rankscope.advise.reasons import reasons_for
from rankscope.advise.select import ArmChoice, choose_for
from rankscope.advise.statistics.significance import ALPHA, holm
from rankscope.advise.task_results import TaskResults
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import count, join_names
from rankscope.records import (
    AnswerRow,
    Claim,
    Confidence,
    Estimate,
    Recommendation,
    RowRole,
    StudyRecords,
    TaskAdvice,
)


def recommend(study: StudyRecords) -> Recommendation:
    """Answer every training task of the study; missing results never raise an error.

    ``use``: a LoRA arm beats the base on the test split. ``use_full``: only full fine-tuning does,
    or LoRA is clearly worse by the margin. ``do_not_fine_tune``: no tested arm is shown to beat the
    base and no arm's measured gain reaches the margin; or the gain is not worth what it costs by
    the study's weights; or every arm exceeds the limit on forgetting. ``not_decided``: nothing
    finished, too little data, intervals too wide, or a test split that contradicts the choice.
    """
    results = task_results(study)
    comparisons = compare_candidates(study, {r.task: r.choice for r in results})
    advice = tuple(_advise(replace(r, comparisons=comparisons[r.task])) for r in results)
    return Recommendation(
        study=study.name,
        advice=advice,
        method=_method_text(
            study.config.objective, {a.task: a.forgetting_scale.text for a in advice}
        ),
        base=base_estimates(study),
        mitigation=compare_mitigations(study),
        rank_curves=compare_rank_curves(study),
        subjects=subject_changes(study, advice),
        given=model_scores(study),
    )


def task_results(study: StudyRecords) -> tuple[TaskResults, ...]:
    """The arms of every training task and the choice among them, without comparisons of arms."""
    arms = summarize_arms(study)
    choices = {task: choose_for(study, task, arms[task]) for task in arms}
    gain_p_by_label = _gain_p_by_label(choices)
    return tuple(
        TaskResults(
            study=study,
            task=task,
            arms=arms[task],
            choice=choices[task],
            objective=study.config.objective,
            gain_p_by_label=gain_p_by_label[task],
            num_tasks=len(arms),
        )
        for task in arms
    )


def _method_text(objective: ObjectiveConfig, forgetting_rules: Mapping[str, str]) -> str:
    """One paragraph on how every choice of the study was made.

    forgetting_rules: training task -> how its forgetting was weighed.
    """
    limit = ""
    if objective.max_forgetting is not None:
        limit = f" Arms that forget more than {objective.max_forgetting:g} are excluded."
    rules = dict.fromkeys(forgetting_rules.values())
    weighed = " ".join(
        rule
        if len(rules) == 1
        else f"Of {join_names(t for t, r in forgetting_rules.items() if r == rule)}: {rule}"
        for rule in rules
    )
    text = f"""
        The validation split gives every arm a net gain over the base, {objective.formula}.
        {weighed} Failed trials count as no gain, and cost is the logarithm of the trainable
        parameters, from 0 for the fewest to 1 for the most. The learning rate is chosen for each
        rank first, then the smallest LoRA rank whose net gain is within {objective.margin:g} of
        the best arm's.{limit} All numbers quoted are from the test split: paired differences on
        the same items with 95 % intervals, from a bootstrap over items (over whole subjects or
        passages if there are ten or more) and Student's t over seeds. One seed is tested by an
        exact McNemar test; several seeds by the interval and by sign flips of item means,
        whichever is less significant. An arm is recommended only if its gain over the base has
        p < {ALPHA:g}. If the smallest rank fails, the arm with the highest net gain is tried too
        (Holm's correction covers both, on all training tasks). A recommendation is withdrawn if,
        on the test split, forgetting outweighs the gain or breaks the limit. It is firm only if,
        besides, no tried arm can be better by more than the margin."""
    return " ".join(text.split())


def _gain_p_by_label(choices: Mapping[str, ArmChoice]) -> dict[str, dict[str, float]]:
    """p of the gain of every arm that may be recommended, by task and label.

    They are one family over all tasks for Holm's correction.
    """
    candidates = {
        (task, candidate.arm.summary.label): candidate.arm.summary.gain
        for task, choice in choices.items()
        for candidate in (choice.chosen, choice.best)
        if candidate is not None
    }
    adjusted = holm([None if gain is None else gain.p for gain in candidates.values()])
    by_task: dict[str, dict[str, float]] = {task: {} for task in choices}
    for (task, label), p in zip(candidates, adjusted, strict=True):
        by_task[task][label] = p
    return by_task


def _advise(results: TaskResults) -> TaskAdvice:
    verdict, better_than_base, best_choice = decide_with_claims(results)
    subject, full, lora = verdict.subject, results.choice.best_full, results.choice.best_lora
    return TaskAdvice(
        task=results.task,
        decision=verdict.decision,
        confidence=verdict.confidence,
        verdict=verdict.text,
        explanation=capitalized(verdict.explanation),
        forgetting_scale=results.scale.record,
        better_than_base=better_than_base,
        best_choice=best_choice,
        rows=_answer_rows(results, verdict),
        checks=trust_checks(results, subject),
        chosen=subject.summary if subject is not None and verdict.recommends_subject else None,
        reasons=reasons_for(results, subject),
        arms=tuple(arm.summary for arm in results.arms),
        comparisons=results.comparisons,
        next_steps=next_steps(results, verdict, best_choice),
        subject_label=None if subject is None else subject.summary.label,
        best_full_label=full.arm.summary.label if full else None,
        best_lora_label=lora.arm.summary.label if lora else None,
        candidate_labels=tuple(c.arm.summary.label for c in results.choice.candidates),
    )


def decide_with_claims(results: TaskResults) -> tuple[Verdict, Claim, Claim]:
    """The verdict, no firmer than its two claims, and the claims: *better than the base*, net of
    forgetting, and *no tried arm is better by more than the margin*.

    Both compare by the study's weights on the test split.
    """
    verdict = decide(results)
    subject = verdict.subject
    if verdict.decision == "not_decided" or subject is None:
        best = _claim("none", "Open: the study cannot tell yet.")
    elif verdict.recommends_subject:
        best = _best(results, subject)
    else:
        margin = results.score(results.objective.margin)
        text = f"A tried arm may still be better than the base by {margin:amount}."
        if verdict.confidence == "firm":
            text = f"No tried arm is better than the base by {margin:amount}."
        best = _claim(verdict.confidence, text)
    better = _better(results, verdict)
    if verdict.recommends_subject and (better.confidence, best.confidence) != ("firm", "firm"):
        verdict = replace(verdict, confidence="tentative")
    return verdict, better, best


def _claim(
    confidence: Confidence, text: str, estimate: Estimate | None = None, rival: str | None = None
) -> Claim:
    return Claim(confidence=confidence, text=capitalized(text), estimate=estimate, rival=rival)


def _better(results: TaskResults, verdict: Verdict) -> Claim:
    arm = None if verdict.subject is None else verdict.subject.summary
    difference = None if arm is None else arm.net_gain or arm.gain
    if arm is None or difference is None:
        return _claim("none", "No arm is shown to be better than the base.")
    is_net, name = arm.net_gain is not None, arm_name(arm)
    net = "net gain" if is_net else "gain"
    measured = results.net(difference) if is_net else results.score(difference)
    evidence = f"{net} {measured:change} ({measured:interval})"
    doubts = [*results.weaknesses(arm), *unconfirmed(results, arm)]
    if verdict.recommends_subject and not doubts:
        return _claim("firm", f"{name} is better than the base: {evidence}.", difference)
    if verdict.recommends_subject:
        text = f"{name} is probably better than the base: {evidence}. What keeps this from being "
        return _claim("tentative", f"{text}certain: {join_names(doubts)}.", difference)
    if difference.is_above(0):
        text = f"Measured so far, {name} has a {net} of {measured:change} ({measured:interval})."
        return _claim("none", text, difference)
    return _claim(
        "none", f"{name} is not shown to be better than the base: {evidence}.", difference
    )


def _best(results: TaskResults, subject: Arm) -> Claim:
    """That no tried arm is better by more than the margin. It holds for every rival at once, so
    each is tested at the full level (an intersection-union test needs no correction)."""
    rivals = [arm for arm in results.arms if arm is not subject and not _is_out(results, arm)]
    if not rivals:
        return _claim("firm", "No other arm was tried.")
    weights, limit = results.objective.weights, results.objective.margin
    net, margin = results.net_name, results.net(limit)
    leads = {
        arm.summary.label: lead
        for arm in rivals
        if (lead := net_difference(results.study, arm, subject, weights)) is not None
    }
    names = {arm.summary.label: arm_name(arm.summary) for arm in rivals}
    ahead = max(leads, key=lambda label: leads[label].value, default=None)
    if ahead is not None and leads[ahead].value > limit and leads[ahead].is_above(0):
        shown = results.net(leads[ahead])
        text = (
            f"On the test split the {net} of {names[ahead]} is {shown:amount} higher "
            f"({shown:interval}). The test split does not choose, so train more seeds of both."
        )
        return _claim("none", text, leads[ahead], ahead)
    highs = {label: inf if e.high is None else e.high for label, e in leads.items()}
    top = max(highs, key=highs.__getitem__, default=None)
    if top is not None and highs[top] > limit:
        shown = results.net(leads[top])
        text = (
            f"{names[top]} may have a {net} more than {margin:amount} higher: the difference is "
            f"{shown:change} ({shown:interval})."
        )
        return _claim("tentative", text, leads[top], top)
    unscored = [arm.summary for arm in rivals if arm.summary.label not in leads]
    if unscored and results.study.config.strategy == "adaptive":
        text = "without test scores, behind on the validation split, may still be better."
        return _claim("tentative", f"{count(len(unscored), 'arm')} {text}")
    if unscored:
        text = f"{verdict_name(unscored[0])} has no score, so it may be better."
        return _claim("tentative", text)
    assert top is not None
    is_firm = not results.choice.passed_over and not results.waiting
    highest = results.net(leads[top])
    text = (
        f"No tried arm has a {net} more than {margin:amount} higher: even at the upper end of its "
        f"interval the closest, {names[top]}, is only {highest:highest} higher."
    )
    if highs[top] <= 0:
        text = (
            f"No tried arm has a higher {net}: the closest, {names[top]}, trails by at least "
            f"{highest:highest}."
        )
    return _claim("firm" if is_firm else "tentative", text, leads[top], top)


def _is_out(results: TaskResults, arm: Arm) -> bool:
    """Arms over the limit, and arms that only diverged, are no rivals."""
    if any(arm is other for other in results.choice.excluded):
        return True
    began = [trial for trial in arm.trials if trial.status != "skipped"]
    return bool(began) and all(trial.status == "diverged" for trial in began)


def _answer_rows(results: TaskResults, verdict: Verdict) -> tuple[AnswerRow, ...]:
    """The recommended arm, the cheapest of those as good as the best, the best full one, and a
    LoRA arm."""
    roles: dict[str, list[RowRole]] = {}
    cheapest, full = results.choice.cheapest, results.choice.best_full
    named: list[tuple[RowRole, Arm | None]] = [
        ("recommended" if verdict.recommends_subject else "closest", verdict.subject),
        ("cheapest", None if cheapest is None else cheapest.arm),
        ("full", None if full is None else full.arm),
    ]
    arms = {}
    for role, arm in named:
        if arm is not None:
            roles.setdefault(arm.summary.label, []).append(role)
            arms[arm.summary.label] = arm.summary
    lora = results.choice.best_lora
    if lora is not None and arms and not any(arm.is_lora for arm in arms.values()):
        label = lora.arm.summary.label
        roles[label], arms[label] = ["lora"], lora.arm.summary
    return tuple(AnswerRow(roles=tuple(roles[label]), arm=arm) for label, arm in arms.items())
