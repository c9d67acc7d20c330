"""How the score moves with the rank: flat, rising, falling, without order."""

from collections.abc import Iterable

from scipy import stats

from rankscope.advise.case import Case
from rankscope.advise.select import Candidate
from rankscope.advise.statistics.significance import ALPHA
from rankscope.advise.wording import values_of
from rankscope.formatting import amount, difference, evidence
from rankscope.records import ArmComparison, ArmSummary, Reason

PATTERN = 0.5
"""|Spearman correlation| of score and rank below which there is no pattern."""


def patterns(case: Case) -> list[Reason]:
    """On the validation split, each rank at its chosen rate; underfitting on the test split."""
    return [*_order(case), *_underfitting(case)]


def _order(case: Case) -> Iterable[Reason]:
    series: dict[tuple[object, ...], dict[int, Candidate]] = {}
    for c in case.choice.candidates:
        rank = c.arm.summary.rank
        of_rank = series.setdefault(c.arm.trials[0].spec.arm_without_rank, {})
        if rank is not None and (rank not in of_rank or c.utility > of_rank[rank].utility):
            of_rank[rank] = c
    # Methods and targets differ in more than the rank: one series, the widest.
    by_rank = max(series.values(), key=lambda s: max(s) - min(s) if s else -1, default={})
    ranks = sorted(by_rank)
    if len(ranks) < 3:
        return
    scores = [by_rank[r].arm.summary.validation_score or 0.0 for r in ranks]
    spread = max(scores) - min(scores)
    shown = f"r={ranks[0]} to r={ranks[-1]}"
    values = {"spread": spread, **{f"score.r{r}": s for r, s in zip(ranks, scores, strict=True)}}
    if spread <= case.objective.margin:
        text = (
            f"From {shown} the validation score moves by only {amount(spread, case.unit)}: on this "
            "task the rank hardly matters. Next: take the smallest, and look at the learning rate."
        )
        yield Reason(kind="sign", text=text, values=values)
        return
    correlation = float(stats.spearmanr(ranks, scores).statistic)
    values["spearman"] = correlation
    if len(ranks) >= 4 and abs(correlation) < PATTERN:
        text = (
            f"No pattern across ranks: from {shown} the validation score moves by "
            f"{amount(spread, case.unit)} without order (Spearman {correlation:+.2f}); noise or "
            "the learning rate decides more than the rank. Next: a list of learning rates for "
            "every rank, and more seeds."
        )
        yield Reason(kind="sign", text=text, values=values)
    elif correlation <= -PATTERN:
        values["change"] = scores[-1] - scores[0]
        text = (
            f"The validation score falls with the rank ({shown}: "
            f"{difference(values['change'], case.unit)}): a learning rate too high for the larger "
            "ranks, or overfitting. Next: lower learning rates, fewer epochs."
        )
        yield Reason(kind="sign", text=text, values=values)


def _underfitting(case: Case) -> Iterable[Reason]:
    """The smallest rank clearly below the largest, Holm over the comparisons of the study."""
    summaries = {a.summary.label: a.summary for a in case.arms}
    series = [c for c in case.comparisons if c.kind == "ranks"]
    if not series:
        return

    def ends(found: ArmComparison) -> tuple[ArmSummary, ArmSummary]:
        return summaries[found.first_label], summaries[found.second_label]

    widest = max(series, key=lambda c: (ends(c)[0].rank or 0) - (ends(c)[1].rank or 0))
    large, small = ends(widest)
    found = widest.difference
    if found.value < case.objective.margin or found.p_holm is None or found.p_holm >= ALPHA:
        return
    text = (
        f"Small ranks underfit: on the test split r={small.rank} is below r={large.rank} by "
        f"{amount(found.value, case.unit)} ({evidence(found, case.unit)})."
    )
    arms = {a.summary.label: a.trials[0].spec.arm_without_rank for a in case.arms}
    own = [c for c in series if arms[c.first_label] == arms[widest.first_label]]
    last = max(own, key=lambda c: (ends(c)[0].rank or 0, ends(c)[1].rank or 0))
    rising = (
        last.difference.value >= case.objective.margin
        and last.difference.p_holm is not None
        and last.difference.p_holm < ALPHA
    )
    values = {
        **values_of(found, "underfit"),
        "still_rising": float(rising),
        "rank": float(large.rank or 0),
    }
    if rising:
        values["next_rank"] = 2.0 * (large.rank or 1)
        text += f" It still rises at r={large.rank}. Next: add r={2 * (large.rank or 1)}."
    else:
        text += f" Next: ranks above r={small.rank}, or a higher learning rate for it."
    yield Reason(kind="sign", text=text, values=values)
