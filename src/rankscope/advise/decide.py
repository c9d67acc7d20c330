"""Decide for one training task: an adapter, full fine-tuning, or no fine-tuning.

One rule: among all arms and the base, take the fewest trainable parameters whose expected regret
is at most ``CLOSE`` margins above the least; of the base and prompts, which train none, the one
that reads the fewest tokens. The regret of an arm is the net gain that it loses against the best of
all arms and the base, expected over the posterior (``posterior.py``). *Do not fine-tune* is the
base winning. Arms that probably exceed the limit on forgetting are left out.

The verb follows the probability of being within the margin of the best. Few items, few seeds and
stopped trials widen the posterior, so they need no rule of their own.
"""

from dataclasses import dataclass
from math import inf

from rankscope.advise.arms import Arm
from rankscope.advise.messages import arm_name, capitalized, verdict_name
from rankscope.advise.results import TaskResults, expected
from rankscope.formatting import amount, count, difference, margin_text, percent, score_text, signed
from rankscope.records import (
    BASE,
    ArmSummary,
    Confidence,
    Decision,
    RankThatMayDo,
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do on one training task, and how sure that is."""

    decision: Decision
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
    posterior = results.posterior
    if posterior is None:
        return _nothing_scored(results)
    if not results.allowed:
        return _all_over_limit(results)
    arms = [results.arms[i] for i in results.allowed]
    regrets = posterior.regret.tolist()  # The base first
    tokens = results.study.tokens_read(BASE, results.task) or 0.0
    sizes = [(0.0, tokens), *(_size(arm.summary, tokens) for arm in arms)]
    # Nobody can use an arm that was stopped before its end.
    whole = [0, *(k for k, arm in enumerate(arms, start=1) if arm.finished)]
    least = min(regrets[k] for k in whole)
    close = [k for k in whole if regrets[k] <= least + CLOSE * posterior.margin]
    taken = min(close, key=lambda k: (sizes[k], regrets[k]))
    p, ranks = float(posterior.p_within_margin[taken]), _ranks_that_may_do(results)
    subject = arms[taken - 1] if taken else results.candidates[0]
    better = expected(subject.summary).p_better
    margin = margin_text(results.margin, results.net_unit)
    tried = "within the limit" if results.over_limit else "tried"
    if taken == 0:
        verdict = (
            f"{NOT_TO[confidence_of(p)]} ({percent(p)} that no "
            f"arm {tried} is better than the base by more than {margin})."
        )
    else:
        verdict = (
            f"{VERBS[confidence_of(p)]} {verdict_name(subject.summary)} ({percent(p)} likely "
            f"within {margin} of the best {tried}; {percent(better)} likely better than the base)."
        )
        verdict += _smaller(results, subject, ranks)
    use: Decision = "use_full" if subject.summary.is_full else "use"
    return Answer(
        decision="do_not_fine_tune" if taken == 0 else use,
        verdict=verdict,
        explanation=_explanation(results, subject),
        subject=subject,
        p_within_margin=p,
        p_better=better,
        regret=float(regrets[taken]),
        ranks=ranks,
    )


def _size(arm: ArmSummary, base_tokens: float) -> tuple[float, float]:
    """Trainable parameters, or of imported scores without them, the rank; and tokens per item."""
    parameters = arm.trainable_parameters or arm.rank or (inf if arm.trains else 0.0)
    return parameters, arm.tokens_per_item or base_tokens


def _ranks_that_may_do(results: TaskResults) -> tuple[RankThatMayDo, ...]:
    """By rising rank, each by its arm of the highest expected net gain."""
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
    """The smaller ranks that may do as well; of full fine-tuning, the best LoRA rank."""
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
    """The expected net gain, and the raw test scores, never mixed up with it."""
    arm, of = subject.summary, expected(subject.summary)
    unit = results.net_unit
    text = (
        f"{capitalized(arm_name(arm))}: expected {results.net_name} "
        f"{difference(of.net, unit)} (95 % interval {signed(of.low, unit)} to "
        f"{signed(of.high, unit)})."
    )
    if arm.score is not None and arm.gain is not None:
        text += f" Measured on test items: {score_text(arm.score.value, results.unit)}, "
        text += f"{difference(arm.gain.value, results.unit)} against the base"
        if arm.forgetting is not None:
            lost = difference(-arm.forgetting.value, results.retention_unit)
            text += f"; retention changes by {lost}"
        text += "."
    elif not subject.finished and any(trial.stop for trial in subject.trials):
        text += " It was stopped before the end of its training."
    if of.p_over_limit is not None:
        limit = amount(results.objective.max_forgetting or 0.0, results.retention_unit)
        text += f" Probability of forgetting more than the {limit} allowed: "
        text += f"{percent(of.p_over_limit)}."
    return text


def _nothing_scored(results: TaskResults) -> Answer:
    """No arm has a score on every task that counts."""
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
    return Answer("not_decided", f"Cannot tell yet: {because}.", text, None)


def _all_over_limit(results: TaskResults) -> Answer:
    limit = amount(results.objective.max_forgetting or 0.0, results.retention_unit)
    least = min(results.over_limit, key=lambda arm: expected(arm.summary).forgetting or 0.0)
    p = expected(least.summary).p_over_limit or 0.0
    verdict = (
        f"{NOT_TO[confidence_of(p)]}: every arm forgets more than "
        f"the {limit} allowed ({percent(p)} of the one that forgets least)."
    )
    text = _explanation(results, least) + (
        " A lower learning rate, fewer steps or a scaled-down adapter may stay within the limit."
    )
    better = expected(least.summary).p_better
    return Answer("do_not_fine_tune", verdict, text, least, p, better)
