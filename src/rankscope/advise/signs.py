"""Signs that something is off, or that the rank is not what matters: known failure patterns."""

from scipy import stats

from rankscope.advise.case import Case
from rankscope.advise.choose import Candidate
from rankscope.advise.statistics import ALPHA, holm
from rankscope.advise.summaries import Arm
from rankscope.advise.wording import amount, difference, level, settings
from rankscope.records import Reason

SATURATED = 0.95
"""Base accuracy from which little is left to gain."""
NEGATIVE_TRANSFER = 0.10
"""Relative fall on another task that counts as negative transfer (arXiv 2512.15634)."""
PATTERN = 0.5
"""|Spearman correlation| of score and rank below which there is no pattern."""


def signs(case: Case, subject: Arm | None) -> list[Reason]:
    """Worse than the base, saturated base, negative transfer, no pattern across ranks."""
    return [
        *_worse_than_base(case),
        *_saturated(case),
        *(_negative_transfer(case, subject) if subject is not None else []),
        *_pattern(case),
    ]


def _worse_than_base(case: Case) -> list[Reason]:
    gains = [(a.summary, a.summary.gain) for a in case.arms if a.summary.gain is not None]
    adjusted = holm([1.0 if g.p is None else g.p for _, g in gains])
    worse = [
        (arm, gain)
        for (arm, gain), p in zip(gains, adjusted, strict=True)
        if gain.value < 0 and p < ALPHA
    ]
    if not worse:
        return []
    arm, gain = min(worse, key=lambda pair: pair[1].value)
    text = (
        f"{len(worse)} of {len(gains)} arms are worse than the base on {case.task} (Holm over the "
        f"arms); the worst, {settings(arm)}, by {amount(gain.value, case.unit)}."
    )
    values = {"worse": float(len(worse)), "arms": float(len(gains)), "worst_gain": gain.value}
    return [Reason(kind="sign", text=text, values=values)]


def _saturated(case: Case) -> list[Reason]:
    if case.unit != "accuracy":
        return []
    base = case.base_score(case.task)
    if base is None or base < SATURATED:
        return []
    text = (
        f"The base already answers {level(base, case.unit)} of {case.task} right: at most "
        f"{amount(1 - base, case.unit)} are left to gain."
    )
    return [Reason(kind="sign", text=text, values={"base": base})]


def _negative_transfer(case: Case, subject: Arm) -> list[Reason]:
    units = {t.name: t.higher_is for t in case.study.tasks}
    found = [
        (name, e, base)
        for name, e in subject.summary.transfer.items()
        if units[name] == "accuracy" and (base := case.base_score(name))
    ]
    adjusted = holm([1.0 if e.p is None else e.p for _, e, _ in found])
    reasons = []
    for (name, e, base), p in zip(found, adjusted, strict=True):
        if e.value / base < -NEGATIVE_TRANSFER and p < ALPHA:
            text = (
                f"Negative transfer: {name} falls by {amount(e.value, 'accuracy')}, "
                f"{-100 * e.value / base:.0f} % of the base's {level(base, 'accuracy')}."
            )
            values = {f"transfer.{name}": e.value, "relative": e.value / base}
            reasons.append(Reason(kind="sign", text=text, values=values))
    return reasons


def _pattern(case: Case) -> list[Reason]:
    """How the selection score moves with the LoRA rank, each rank at its chosen rate."""
    by_rank: dict[int, Candidate] = {}
    for c in case.choice.candidates:
        rank = c.arm.summary.rank
        if rank is not None and (rank not in by_rank or c.utility > by_rank[rank].utility):
            by_rank[rank] = c
    ranks = sorted(by_rank)
    if len(ranks) < 3:
        return []
    scores = [by_rank[r].arm.summary.selection_score or 0.0 for r in ranks]
    spread = max(scores) - min(scores)
    shown = f"r={ranks[0]} to r={ranks[-1]}"
    values = {"spread": spread, **{f"score.r{r}": s for r, s in zip(ranks, scores, strict=True)}}
    if spread <= case.objective.margin:
        text = (
            f"From {shown} the selection score moves by only {amount(spread, case.unit)}: on this "
            "task the rank hardly matters."
        )
        return [Reason(kind="sign", text=text, values=values)]
    correlation = float(stats.spearmanr(ranks, scores).statistic)
    values["spearman"] = correlation
    if len(ranks) >= 4 and abs(correlation) < PATTERN:
        text = (
            f"No pattern across ranks: from {shown} the selection score moves by "
            f"{amount(spread, case.unit)} without order (Spearman {correlation:+.2f}); noise or "
            "the learning rate decides more than the rank."
        )
        return [Reason(kind="sign", text=text, values=values)]
    if correlation <= -PATTERN:
        change = difference(scores[-1] - scores[0], case.unit)
        text = (
            f"The selection score falls with the rank ({shown}: {change}): a learning rate too "
            "high for the larger ranks, or overfitting."
        )
        return [Reason(kind="sign", text=text, values=values)]
    return []
