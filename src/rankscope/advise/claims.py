"""The two claims of an answer, each with its own confidence.

*Better than the base*, net of forgetting, and *no tried arm is better by more than the margin*.
Both compare by the study's weights on the test split. The second claim holds for every rival at
once, so each is tested at the full level (an intersection-union test needs no correction).
"""

from dataclasses import replace
from math import inf

from rankscope.advise.arms import Arm
from rankscope.advise.catalogue import CLAIMS
from rankscope.advise.comparisons import net_difference
from rankscope.advise.decide import Verdict, unconfirmed
from rankscope.advise.messages import Counted, Field, arm_name, capitalized, clause, verdict_name
from rankscope.advise.task_results import TaskResults
from rankscope.formatting import join_names
from rankscope.records import AnswerRow, Claim, Confidence, Estimate, RowRole


def with_claims(results: TaskResults, verdict: Verdict) -> tuple[Verdict, Claim, Claim]:
    """The verdict, no firmer than its claims, and the claims."""
    subject = verdict.subject
    if verdict.decision == "not_decided" or subject is None:
        best = _claim("none", "not_compared")
    elif verdict.recommends_subject:
        best = _best(results, subject)
    else:
        name = "base_best" if verdict.confidence == "firm" else "base_best_unclear"
        margin = results.score(results.objective.margin)
        best = _claim(verdict.confidence, name, margin=margin)
    better = _better(results, verdict)
    if verdict.recommends_subject and (better.confidence, best.confidence) != ("firm", "firm"):
        verdict = replace(verdict, confidence="tentative")
    return verdict, better, best


def _claim(
    confidence: Confidence, name: str, estimate: Estimate | None = None, **fields: Field
) -> Claim:
    text = capitalized(CLAIMS[name].format_map(fields))
    return Claim(confidence=confidence, text=text, estimate=estimate)


def _better(results: TaskResults, verdict: Verdict) -> Claim:
    subject = verdict.subject
    arm = None if subject is None else subject.summary
    difference = None if arm is None else arm.net_gain or arm.gain
    if arm is None or difference is None:
        return _claim("none", "no_arm_better")
    confidence: Confidence = "none"
    name = "measured" if difference.is_above(0) else "not_better"
    doubts = [*results.weaknesses(arm), *unconfirmed(results, arm)]
    if verdict.recommends_subject:
        confidence, name = ("tentative", "better_unclear") if doubts else ("firm", "better")
    counted: dict[str, Field] = {"seeds": Counted(arm.seeds, "seed"), "failed": arm.failed}
    return _claim(
        confidence,
        name,
        difference,
        arm=arm_name(arm),
        net="gain" if arm.net_gain is None else "net gain",
        difference=results.score(difference) if arm.net_gain is None else results.net(difference),
        doubts=join_names(clause(doubt, **counted) for doubt in doubts),
    )


def _best(results: TaskResults, subject: Arm) -> Claim:
    rivals = [arm for arm in results.arms if arm is not subject and not _is_out(results, arm)]
    if not rivals:
        return _claim("firm", "only_arm")
    weights, margin = results.objective.weights, results.objective.margin
    leads = {
        arm.summary.label: lead
        for arm in rivals
        if (lead := net_difference(results.study, arm, subject, weights)) is not None
    }
    names = {arm.summary.label: arm_name(arm.summary) for arm in rivals}

    def about(confidence: Confidence, name: str, label: str) -> Claim:
        fields: dict[str, Field] = {
            "rival": names[label],
            "net": results.net_name,
            "difference": results.net(leads[label]),
            "margin": results.net(margin),
        }
        claim = _claim(confidence, name, leads[label], **fields)
        return claim.model_copy(update={"rival": label})

    ahead = max(leads, key=lambda label: leads[label].value, default=None)
    if ahead is not None and leads[ahead].value > margin and leads[ahead].is_above(0):
        return about("none", "best_contradicted", ahead)
    highs = {label: inf if e.high is None else e.high for label, e in leads.items()}
    top = max(highs, key=highs.__getitem__, default=None)
    if top is not None and highs[top] > margin:
        return about("tentative", "best_unclear", top)
    unscored = [arm.summary for arm in rivals if arm.summary.label not in leads]
    if unscored and results.study.config.strategy == "adaptive":
        return _claim("tentative", "best_left_out", unscored=Counted(len(unscored), "arm"))
    for arm in unscored:
        return _claim("tentative", "best_unknown", unknown=verdict_name(arm))
    assert top is not None
    is_firm = not results.choice.passed_over and not results.waiting
    name = "best" if highs[top] > 0 else "best_clearly"
    return about("firm" if is_firm else "tentative", name, top)


def _is_out(results: TaskResults, arm: Arm) -> bool:
    """Arms over the limit, and arms that only diverged, are no rivals."""
    if any(arm is other for other in results.choice.excluded):
        return True
    began = [trial for trial in arm.trials if trial.status != "skipped"]
    return bool(began) and all(trial.status == "diverged" for trial in began)


def answer_rows(results: TaskResults, verdict: Verdict) -> tuple[AnswerRow, ...]:
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
