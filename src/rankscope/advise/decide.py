"""The decision: which arm to use, or none, by the expected regret of every choice.

The base is one of the choices. The regret of an arm is the net gain that it loses against the best
of all arms and the base, expected over the draws (``net_gains.py``). *Do not fine-tune* means that
the base wins. Arms that probably exceed the limit on forgetting are left out.

The verb follows the probability of being within the margin of the best. Open checks (``checks.py``)
limit how sure an answer may sound. Few items and few seeds widen the draws, so they need no rule of
their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from rankscope.advise.arms import Arm
from rankscope.advise.checks import near_guessing
from rankscope.advise.messages import arm_name, capitalized, verdict_name
from rankscope.advise.results import TaskResults, expected
from rankscope.formatting import (
    Unit,
    amount,
    count,
    difference,
    join_names,
    margin_text,
    percent,
    score_text,
    signed,
    unit_of,
)
from rankscope.records import (
    BASE,
    ArmSummary,
    CheckName,
    Confidence,
    Decision,
    ExpectedChange,
    RankThatMayDo,
    TrustCheck,
    confidence_of,
    finished_trials,
)

CLOSE = 0.25  # Margins of expected regret for which fewer parameters are taken
RIVALS_NAMED = 2  # Smaller ranks in the verdict, the largest of those that may do
MAY_DO = 0.05  # Least probability of being within the margin of a rank that is named
LIKELY_ENOUGH = 0.2  # From here on the verdict says that a smaller rank may do as well
VERBS: dict[Confidence, str] = {"sure": "Use", "probable": "Probably use", "leaning": "Leaning to"}
NOT_TO: dict[Confidence, str] = {
    "sure": "Do not fine-tune",
    "probable": "Probably do not fine-tune",
    "leaning": "Leaning to no fine-tuning",
}
TRIED: dict[CheckName, str] = {"learning_rate": "rates", "ranks": "ranks", "loss": "lengths"}
"""Maps an open check to the values that it leaves untried, in the verdict's words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The advice for one training task, and its confidence."""

    decision: Decision
    confidence: Confidence
    verdict: str
    explanation: str
    subject: Arm | None  # The arm that is recommended, or else the closest to it
    p_within_margin: float | None = None
    p_better: float | None = None
    regret: float | None = None
    ranks: tuple[RankThatMayDo, ...] = ()

    @property
    def chosen(self) -> ArmSummary | None:
        recommends = self.decision in ("use", "use_full") and self.subject is not None
        return self.subject.summary if recommends and self.subject else None


def decide(results: TaskResults) -> Answer:
    """Decide by the scores alone; :func:`no_surer_than` then limits the answer by the checks."""
    net = results.net
    if net is None:
        return _nothing_scored(results)
    if not results.allowed:
        return _all_over_limit(results)
    arms = [results.arms[i] for i in results.allowed]
    regrets = net.regret.tolist()  # The base first
    tokens = results.study.tokens_read(BASE, results.task) or 0.0
    sizes = [(0.0, tokens), *(_size(arm.summary, tokens) for arm in arms)]
    close = [k for k, regret in enumerate(regrets) if regret <= min(regrets) + CLOSE * net.margin]
    taken = min(close, key=lambda k: (sizes[k], regrets[k]))
    p, subject = float(net.p_within_margin[taken]), arms[taken - 1]
    use: Decision = "use_full" if subject.summary.is_full else "use"
    if taken == 0:
        use, subject = "do_not_fine_tune", results.candidates[0]
    return Answer(
        decision=use,
        confidence=confidence_of(p),
        verdict="",
        explanation=_explanation(results, subject),
        subject=subject,
        p_within_margin=p,
        p_better=expected(subject.summary).p_better,
        regret=float(regrets[taken]),
        ranks=_ranks_that_may_do(results),
    )


def no_surer_than(answer: Answer, results: TaskResults, checks: Sequence[TrustCheck]) -> Answer:
    """Write the verdict of an answer. A bad check leaves it undecided; an open one allows
    "probably".

    The verdict also names untried values, the worst loss, and scores of guessing that are close.
    """
    if answer.verdict or answer.subject is None:
        return answer
    p, subject = answer.p_within_margin or 0.0, answer.subject
    bad, open_checks = ([c for c in checks if c.status == s] for s in ("bad", "weak"))
    confidence = answer.confidence
    if confidence == "sure" and open_checks:
        confidence = "probable"
    untried = [TRIED[c.name] for c in open_checks if c.name in TRIED]
    of = f"the {join_names(untried)} tried" if untried else f"{len(results.allowed)} tried"
    of += " within the limit" if results.over_limit else ""
    margin = margin_text(results.margin, results.net_unit)
    likely = f"{percent(p)} likely within {margin} of the best of {of}"
    better = f"{percent(answer.p_better or 0.0)} likely better than the base"
    name = verdict_name(subject.summary)
    explanation = answer.explanation
    if answer.decision == "do_not_fine_tune":
        explanation = f"Closest to it: {explanation}"
        verdict = f"{NOT_TO[confidence]} (the base is {likely})."
        name = "the base"
    else:
        verdict = f"{VERBS[confidence]} {name} ({likely}; {better})."
        verdict += _smaller(results, subject, answer.ranks) + _worst_loss(results, subject)
    verdict += near_guessing(results, subject.summary)
    if bad:
        why = "; ".join(check.value for check in bad)
        leads = "leads" if subject is results.candidates[0] else "is the smallest close to the best"
        verdict = f"Not decided yet ({why}): {name} {leads}."
        return replace(answer, decision="not_decided", confidence="none", verdict=verdict)
    return replace(answer, confidence=confidence, verdict=verdict, explanation=explanation)


def _worst_loss(results: TaskResults, subject: Arm) -> str:
    """Name the retention task that falls most among those that surely fall."""
    changes = expected(subject.summary).changes
    clear = {n: c for n, c in changes.items() if n != results.task and c.high < 0}
    if not clear:
        return ""
    worst = min(clear, key=lambda name: clear[name].value)
    unit = unit_of(results.study.task(worst).score_unit)
    return f" Worst loss: {worst} {difference(clear[worst].value, unit)}."


def _size(arm: ArmSummary, base_tokens: float) -> tuple[float, float]:
    """Return the trainable parameters and the tokens per item of an arm.

    Imported scores without parameters count by the rank.
    """
    parameters = arm.trainable_parameters or arm.rank or (inf if arm.trains else 0.0)
    return parameters, arm.tokens_per_item or base_tokens


def _ranks_that_may_do(results: TaskResults) -> tuple[RankThatMayDo, ...]:
    """Return the ranks that may do, ascending, each by its arm of the highest expected net gain."""
    best: dict[int, ArmSummary] = {}
    for arm in results.candidates:
        if arm.summary.is_lora and arm.summary.rank is not None:
            best.setdefault(arm.summary.rank, arm.summary)
    ranks = (
        RankThatMayDo(rank=rank, label=arm.label, p=expected(arm).p_within_margin)
        for rank, arm in sorted(best.items())
    )
    return tuple(rank for rank in ranks if rank.p >= MAY_DO)


def _smaller(results: TaskResults, subject: Arm, ranks: tuple[RankThatMayDo, ...]) -> str:
    """Name the smaller ranks that may do as well; for full fine-tuning, the best LoRA rank."""
    rank = subject.summary.rank
    if subject.summary.is_full:
        rivals = sorted(ranks, key=lambda r: -r.p)[:1]
    else:
        rivals = [r for r in ranks if rank is not None and r.rank < rank][-RIVALS_NAMED:]
    if not rivals:
        has_smaller = any((a.summary.rank or rank or 0) < (rank or 0) for a in results.candidates)
        return " No smaller rank is likely to do as well." if rank and has_smaller else ""
    named = " and ".join(f"r={r.rank} ({percent(r.p)})" for r in rivals)
    if max(r.p for r in rivals) < LIKELY_ENOUGH:
        kind = "LoRA" if subject.summary.is_full else "smaller"
        return f" No {kind} rank is likely to do as well: {named}."
    return f" {capitalized(named)} may do as well."


def _explanation(results: TaskResults, subject: Arm) -> str:
    """State expected gain, forgetting and net gain, then the raw test scores, never mixed."""
    arm, of = subject.summary, expected(subject.summary)

    def said(name: str, change: ExpectedChange, unit: Unit) -> str:
        low, high = signed(change.low, unit), signed(change.high, unit)
        return f"{name} {difference(change.value, unit)} (95 % interval {low} to {high})"

    found = []
    if results.task in of.changes:
        found.append(said("gain", of.changes[results.task], results.unit))
    if (lost := of.forgetting) is not None:
        kept = ExpectedChange(value=-lost.value, low=-lost.high, high=-lost.low)
        found.append(said("retention", kept, results.retention_unit))
    if results.net_name != "gain":
        found.append(said("net gain", of.net, results.net_unit))
    text = f"{capitalized(arm_name(arm))}: expected {', '.join(found)}."
    if arm.score is not None and arm.gain is not None:
        text += f" Measured on test items: {score_text(arm.score.value, results.unit)}, "
        text += f"{difference(arm.gain.value, results.unit)} against the base"
        if arm.forgetting is not None:
            fallen = difference(-arm.forgetting.value, results.retention_unit)
            text += f"; retention changes by {fallen}"
        text += "."
    if of.p_over_limit is not None:
        limit = amount(results.objective.max_forgetting or 0.0, results.retention_unit)
        text += f" Probability of forgetting more than the {limit} allowed: "
        text += f"{percent(of.p_over_limit)}."
    return text


def _nothing_scored(results: TaskResults) -> Answer:
    """Answer a task on which no arm has every score that counts."""
    task, done = results.task, len(finished_trials(results.trials))
    if not results.trials:
        because, text = "no arm was trained", f"No arm has scores on {task}."
    elif not done:
        because = "no trial has finished"
        text = f"Of the trials on {task}, {len(results.failed)} failed and {results.waiting} are "
        text += "still to run."
    else:
        because = "no arm has scores"
        text = f"{count(done, 'trial')} on {task} finished without the scores that are compared. "
        text += "Run the study again to evaluate."
    return Answer("not_decided", "none", f"Cannot tell yet: {because}.", text, None)


def _all_over_limit(results: TaskResults) -> Answer:
    limit = amount(results.objective.max_forgetting or 0.0, results.retention_unit)
    least = min(results.over_limit, key=_forgotten)
    p = expected(least.summary).p_over_limit or 0.0
    verdict = (
        f"{NOT_TO[confidence_of(p)]}: every arm forgets more than "
        f"the {limit} allowed ({percent(p)} of the one that forgets least)."
    )
    text = _explanation(results, least) + (
        " A lower learning rate, fewer steps or a scaled-down adapter may stay within the limit."
    )
    better = expected(least.summary).p_better
    return Answer("do_not_fine_tune", confidence_of(p), verdict, text, least, p, better)


def _forgotten(arm: Arm) -> float:
    of = expected(arm.summary).forgetting
    return 0.0 if of is None else of.value
