"""The decision: which arm to use, or none, by the expected regret of every choice.

The base is one of the choices. The regret of an arm is the net gain that it loses against the best
of all arms and the base, expected over the draws (``net_gains.py``). *Do not fine-tune* means that
the base wins. Arms that probably exceed the limit on forgetting are left out.

The confidence follows the probability of being within the margin of the best. Open checks
(``checks.py``) limit it. Few items and few seeds widen the draws, so they need no rule of their
own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from rankscope.advise.arms import Arm
from rankscope.advise.messages import arm_name, capitalized, verdict_name
from rankscope.advise.results import TaskResults, expected
from rankscope.formatting import (
    amount,
    brief,
    difference,
    interval,
    join_names,
    percent,
    score_text,
    unit_of,
)
from rankscope.records import (
    BASE,
    MAY_DO,
    ArmSummary,
    Confidence,
    Decision,
    RankThatMayDo,
    TrustCheck,
    confidence_of,
    finished_trials,
)

CLOSE = 0.25  # Margins of expected regret for which fewer parameters are taken
RIVALS_NAMED = 2  # Smaller ranks that have a row, the largest of those that may do
_HEADLINES = {"do_not_fine_tune": "Do not fine-tune.", "not_decided": "Not decided yet."}


@dataclass(frozen=True, slots=True)
class Answer:
    """The advice for one training task, and its confidence."""

    decision: Decision
    confidence: Confidence
    summary: str
    explanation: str
    subject: Arm | None  # The arm that is recommended, or else the closest to it
    p_within_margin: float | None = None
    p_better: float | None = None
    regret: float | None = None
    ranks: tuple[RankThatMayDo, ...] = ()

    @property
    def chosen(self) -> ArmSummary | None:
        return self.subject.summary if self.subject and self.decision not in _HEADLINES else None

    @property
    def verdict(self) -> str:
        chosen = self.chosen
        return f"Use {verdict_name(chosen)}." if chosen else _HEADLINES[self.decision]


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
    explanation = _explanation(results, subject)
    likely = f"{percent(p)} likely among the best of {len(arms)} tried"
    likely += " within the limit" if results.over_limit else ""
    summary = f"{capitalized(likely)}.{_learned_and_lost(results, subject.summary)}"
    if taken == 0:
        use, subject = "do_not_fine_tune", results.candidates[0]
        net_gain = brief(expected(subject.summary).net.value, results.net_unit)
        summary = f"The base is {likely}. {capitalized(verdict_name(subject.summary))} comes "
        summary += f"closest with a net gain of {net_gain}."
        explanation = f"Closest to it: {_explanation(results, subject)}"
    return Answer(
        decision=use,
        confidence=confidence_of(p),
        summary=summary,
        explanation=explanation,
        subject=subject,
        p_within_margin=p,
        p_better=expected(subject.summary).p_better,
        regret=float(regrets[taken]),
        ranks=_ranks_that_may_do(results),
    )


def no_surer_than(answer: Answer, checks: Sequence[TrustCheck]) -> Answer:
    """Limit an answer by the checks: a bad one leaves it undecided, an open one never sure."""
    bad = [check.value for check in checks if check.status == "bad"]
    if bad and answer.subject:
        is_base = answer.decision == "do_not_fine_tune"
        leader = "the base" if is_base else verdict_name(answer.subject.summary)
        summary = f"This has to be mended first: {join_names(bad)}. So far "
        summary += f"the scores favor {leader}."
        return replace(answer, decision="not_decided", confidence="none", summary=summary)
    if answer.confidence == "sure" and any(check.status != "fine" for check in checks):
        return replace(answer, confidence="probable")
    return answer


def _learned_and_lost(results: TaskResults, arm: ArmSummary) -> str:
    """Name what the arm learns, and the retention task that falls most."""
    text, changes = "", expected(arm).changes
    if results.task in changes:
        text += f" Learns {brief(changes[results.task].value, results.unit)}."
    if lost := arm.worst_loss:
        unit = unit_of(results.study.task(lost[0]).score_unit)
        text += f" Worst loss: {lost[0]} {brief(lost[1].value, unit)}."
    return text


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


def _explanation(results: TaskResults, subject: Arm) -> str:
    """State expected gain, forgetting and net gain, then the raw test scores, never mixed."""
    arm, of = subject.summary, expected(subject.summary)
    changes = [
        ("gain", of.changes.get(results.task), results.unit),
        ("retention", -of.forgetting if of.forgetting else None, results.retention_unit),
        ("net gain", of.net if results.net_name != "gain" else None, results.net_unit),
    ]
    found = [f"{n} {difference(c.value, u)} ({interval(c, u)})" for n, c, u in changes if c]
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
    because, text = "Nothing was trained.", f"No configuration has scores on {results.task}."
    if finished_trials(results.trials):
        because = "No configuration has all scores."
        text += " Run the study again to evaluate."
    elif results.trials:
        because = "No run has finished."
    return Answer("not_decided", "none", because, text, None)


def _all_over_limit(results: TaskResults) -> Answer:
    limit = amount(results.objective.max_forgetting or 0.0, results.retention_unit)
    least = min(results.over_limit, key=_forgotten)
    p = expected(least.summary).p_over_limit or 0.0
    summary = f"Every configuration forgets more than the {limit} allowed. "
    summary += f"{capitalized(verdict_name(least.summary))} forgets least and is {percent(p)} "
    summary += "likely over the limit."
    text = _explanation(results, least) + (
        " A lower learning rate, fewer steps or a scaled-down adapter may stay within the limit."
    )
    better = expected(least.summary).p_better
    return Answer("do_not_fine_tune", confidence_of(p), summary, text, least, p, better)


def _forgotten(arm: Arm) -> float:
    of = expected(arm.summary).forgetting
    return 0.0 if of is None else of.value
