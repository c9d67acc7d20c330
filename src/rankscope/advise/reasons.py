"""The reasons behind a decision, and the limits of its evidence.

Numbers without a split are of the test split.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.axes import axis_texts
from rankscope.advise.checks import MOST_NAMED
from rankscope.advise.diagnostics import MORE_CAPACITY, diagnostics, parameters_per_token
from rankscope.advise.messages import capitalized
from rankscope.advise.results import TaskResults, expected
from rankscope.formatting import (
    amount,
    count,
    difference,
    evidence,
    join_names,
    percent,
    signed,
    unit_of,
)
from rankscope.records import AdviceKind, AdviceMessage, ArmSummary, Estimate


def reasons_for(results: TaskResults, subject: Arm | None) -> tuple[AdviceMessage, ...]:
    """Reasons that describe ``subject``, then diagnostics and caveats of the whole task."""
    arm = None if subject is None else subject.summary
    said: dict[AdviceKind, Iterable[str]] = {
        "forgetting": _forgetting(results, arm),
        "transfer": _transfer(results, arm),
        "axis": axis_texts(results),
        "diagnostic": diagnostics(results, subject),
        "caveat": _caveats(results, subject),
    }
    return tuple(
        AdviceMessage(kind=kind, text=capitalized(text))
        for kind, texts in said.items()
        for text in texts
    )


def _forgetting(results: TaskResults, arm: ArmSummary | None) -> Iterator[str]:
    if arm is None or arm.forgetting is None:
        return
    unit, change, of = results.retention_unit, -arm.forgetting, arm.expected
    tasks = ", ".join(_change(results, name, e) for name, e in sorted(arm.retention.items()))
    text = f"On the retention tasks its score changes by {difference(change.value, unit)} "
    text += f"({evidence(change, unit)}): {tasks}."
    if of is not None and of.forgetting is not None:
        low, high = (signed(-(end or 0.0), unit) for end in (of.forgetting_high, of.forgetting_low))
        text += f" Expected from all items, seeds and arms: {difference(-of.forgetting, unit)} "
        text += f"({low} to {high})."
    yield text


def _transfer(results: TaskResults, arm: ArmSummary | None) -> Iterator[str]:
    if arm is not None and arm.transfer:
        falls_first = sorted(arm.transfer.items(), key=lambda pair: pair[1].value)
        unclear = {True: "", False: " (unclear)"}
        changes = [_change(results, n, e) + unclear[e.is_clear_of_zero] for n, e in falls_first]
        yield f"On other tasks it changes the score by: {', '.join(changes)}."


def _change(results: TaskResults, task: str, change: Estimate) -> str:
    unit = unit_of(results.study.task(task).score_unit)
    return f"{task} {difference(change.value, unit)}"


def _caveats(results: TaskResults, subject: Arm | None) -> Iterator[str]:
    """Limits of the task, or of the arm ``subject``, that no trust check states."""
    yield from _learning_rates(results)
    yield from _over_limit(results)
    if subject is not None:
        yield from _rank_edges(results, subject)


def _learning_rates(results: TaskResults) -> Iterable[str]:
    """Ranks that differ in nothing else, but were tried at one learning rate or at unequal ones."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in results.trials:
        if trial.spec.rank is not None and trial.spec.lr:
            rates = series.setdefault(trial.spec.arm_without_rank, {})
            rates.setdefault(trial.spec.rank, set()).add(trial.spec.lr)
    best: dict[tuple[object, int | None], Arm] = {}
    for arm in results.candidates:  # highest first: of several alphas the best stands for its rank
        best.setdefault((arm.trials[0].spec.arm_without_rank, arm.summary.rank), arm)

    def is_at_end(arm: Arm | None) -> bool:
        if arm is None:
            return True
        rates = results.rates_of(arm)
        return arm.summary.lr in (rates[0], rates[-1])

    texts = (
        _confounded(by_rank, [r for r in sorted(by_rank) if is_at_end(best.get((key, r)))])
        for key, by_rank in series.items()
        if len(by_rank) > 1
    )
    return dict.fromkeys(text for text in texts if text)


def _confounded(by_rank: Mapping[int, set[float]], at_ends: Sequence[int]) -> str:
    """``at_ends``: ranks whose best rate is the lowest or highest of its list, or not known."""
    shared = set.intersection(*by_rank.values())
    tried = sorted(set.union(*by_rank.values()))
    if tried != sorted(shared):
        if not at_ends:
            return ""
        named = "; ".join(
            f"r={rank} at {', '.join(f'{lr:g}' for lr in sorted(by_rank[rank]))}"
            for rank in sorted(by_rank)
        )
        return (
            f"Ranks were not trained at the same learning rates ({named}), and the best rate of "
            f"{join_names(f'r={rank}' for rank in at_ends)} may lie beyond those tried, so a "
            "difference between ranks may be one between learning rates. Give all ranks the same "
            "list, or those ranks more rates."
        )
    if len(tried) > 1:
        return ""
    all_ranks = "Both ranks" if len(by_rank) == 2 else f"All {len(by_rank)} ranks"
    return (
        f"{all_ranks} were trained at one learning rate ({tried[0]:g}), so a difference between "
        "ranks may be one between learning rates. Give lr a list."
    )


def _over_limit(results: TaskResults) -> Iterator[str]:
    limit, excluded = results.objective.max_forgetting, results.over_limit
    if limit is None or not excluded:
        return
    arms = [arm.summary for arm in excluded]
    named = [f"{arm.label} ({percent(expected(arm).p_over_limit or 0.0)})" for arm in arms]
    forget, were = ("forgets", "was") if len(arms) == 1 else ("forget", "were")
    yield (
        f"{count(len(arms), 'arm')} of {len(results.arms)} probably {forget} more than the "
        f"{amount(limit, results.retention_unit)} allowed and {were} left out: "
        f"{join_names(named, MOST_NAMED)}."
    )


def _rank_edges(results: TaskResults, subject: Arm) -> Iterator[str]:
    """The end of the ranks tried, unless the capacity rule asks for a rank on the other side."""
    rank, ratio = subject.summary.rank, parameters_per_token(results, subject) or 1.0
    ranks = sorted({r for a in results.arms if (r := a.summary.rank) is not None})
    if rank is None or len(ranks) < 2:
        return
    if 1 < rank == ranks[0] and ratio >= 1:
        yield f"r={rank} is the smallest rank tried: a smaller one may be enough."
    if rank == ranks[-1] and ratio <= MORE_CAPACITY:
        more = ": a larger one may gain more."
        if rank >= results.hidden_size_rank:
            more = ", and larger ones add no directions: more target modules may gain more."
        yield f"r={rank} is the largest rank tried{more}"
