"""Limits of the evidence behind a decision."""

from collections.abc import Iterator, Mapping

from rankscope.advise.arms import Arm
from rankscope.advise.checks import MOST_NAMED, first_names
from rankscope.advise.diagnostics import MORE_CAPACITY, parameters_per_token
from rankscope.advise.messages import Counted, Measured, arm_name, message
from rankscope.advise.task_results import TaskResults
from rankscope.formatting import amount
from rankscope.records import AdviceMessage


def caveats(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    """Limits of the task, or of the arm ``subject``, that no trust check states."""
    for arm in results.choice.passed_over[:1]:
        yield message("passed_over", arm=arm_name(arm.summary))
    yield from _learning_rates(results)
    yield from _over_limit(results)
    if subject is not None:
        yield from _limit_not_shown(results, subject)
        yield from _rank_edges(results, subject)


def _learning_rates(results: TaskResults) -> Iterator[AdviceMessage]:
    """Ranks that differ in nothing else, but were tried at one learning rate or at unequal ones."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in results.trials:
        if trial.spec.rank is not None:
            rates = series.setdefault(trial.spec.arm_without_rank, {})
            rates.setdefault(trial.spec.rank, set()).add(trial.spec.lr)
    messages = [_confounded(by_rank) for by_rank in series.values() if len(by_rank) > 1]
    yield from {m.text: m for m in messages if m is not None}.values()


def _confounded(by_rank: Mapping[int, set[float]]) -> AdviceMessage | None:
    shared = set.intersection(*by_rank.values())
    tried = sorted(set.union(*by_rank.values()))
    if tried != sorted(shared):
        named = "; ".join(
            f"r={rank} at {', '.join(f'{lr:g}' for lr in sorted(by_rank[rank]))}"
            for rank in sorted(by_rank)
        )
        rates = {f"lr.{place}": lr for place, lr in enumerate(tried)}
        return message("unequal_rates", named=named, ranks=len(by_rank), **rates)
    if len(tried) > 1:
        return None
    all_ranks = "Both ranks" if len(by_rank) == 2 else f"All {len(by_rank)} ranks"
    return message("one_rate", all_ranks=all_ranks, ranks=len(by_rank), lr=tried[0])


def _over_limit(results: TaskResults) -> Iterator[AdviceMessage]:
    limit, excluded = results.objective.max_forgetting, results.choice.excluded
    if limit is None or not excluded:
        return
    unit = results.retention_unit
    lost = [(a.summary, a.summary.validation_forgetting or 0.0) for a in excluded]
    named = [f"{arm_name(arm)}, {amount(forgetting, unit)}" for arm, forgetting in lost]
    yield message(
        "over_limit",
        excluded=Counted(len(excluded), "arm"),
        arms=len(results.arms),
        max_forgetting=Measured(limit, unit),
        were="was" if len(excluded) == 1 else "were",
        **first_names(named),
        **{f"validation_forgetting.{arm.label}": value for arm, value in lost[:MOST_NAMED]},
    )


def _limit_not_shown(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    limit, forgetting = results.objective.max_forgetting, subject.summary.forgetting
    if limit is None or forgetting is None:
        return
    if forgetting.high is None or forgetting.high > limit:
        yield message(
            "limit_not_shown",
            arm=arm_name(subject.summary),
            max_forgetting=results.retained(limit),
            forgetting=results.retained(forgetting),
        )


def _rank_edges(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    """The end of the ranks tried, unless the capacity rule asks for a rank on the other side."""
    rank, ratio = subject.summary.rank, parameters_per_token(results, subject) or 1.0
    ranks = sorted({r for a in results.arms if (r := a.summary.rank) is not None})
    if rank is None or len(ranks) < 2:
        return
    if 1 < rank == ranks[0] and ratio >= 1:
        yield message("smallest_rank", rank=rank)
    if rank == ranks[-1] and ratio <= MORE_CAPACITY:
        is_full = rank >= results.hidden_size_rank
        yield message("largest_is_full_rank" if is_full else "largest_rank", rank=rank)
