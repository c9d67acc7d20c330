"""Limits of the evidence behind a decision."""

from collections.abc import Iterator, Mapping, Sequence

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.messages import Counted, Field, Measured, arm_name, message
from rankscope.advise.statistics.estimates import clustered_standard_error
from rankscope.advise.statistics.power import detectable
from rankscope.advise.task_results import TaskResults
from rankscope.formatting import POINTS, amount
from rankscope.records import FEWEST_SEEDS, AdviceMessage

MOST_NAMED = 4
"""Arms or trials that one sentence names."""


def caveats(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    """Every limit that applies to the task, or to the arm ``subject``."""
    yield from _trials(results)
    yield from _learning_rates(results)
    yield from _contamination(results)
    yield from _retention(results, subject)
    yield from _over_limit(results)
    if subject is not None:
        yield from _units(results, subject)
        yield from _limit_not_shown(results, subject)
        yield from _few_seeds(subject)
        yield from _edges(results, subject)
        yield from _detectable(results, subject)


def _trials(results: TaskResults) -> Iterator[AdviceMessage]:
    trials = Counted(len(results.trials), "trial")
    if results.failed:
        names = [f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in results.failed]
        yield message("failed_trials", failed=len(names), trials=trials, **_first_names(names))
    for arm in results.choice.passed_over[:1]:
        yield message("passed_over", arm=arm_name(arm.summary))
    if results.waiting:
        yield message("waiting_trials", waiting=results.waiting, trials=trials)


def _first_names(names: Sequence[str]) -> dict[str, Field]:
    """The first few names, and the number of others."""
    named, unnamed = "; ".join(names[:MOST_NAMED]), len(names) - MOST_NAMED
    if unnamed <= 0:
        return {"named": named}
    return {"named": f"{named} and {unnamed} more", "unnamed": unnamed}


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


def _contamination(results: TaskResults) -> Iterator[AdviceMessage]:
    record = results.record
    kinds = {} if record is None else {k: v for k, v in sorted(record.contamination.items()) if v}
    if record is not None and kinds:
        yield message(
            "contamination",
            rows=Counted(record.rows.get("test", 0), "test row"),
            task=results.task,
            named=", ".join(f"{rows} {kind}" for kind, rows in kinds.items()),
            **{f"contamination_{kind}": rows for kind, rows in kinds.items()},
        )


def _retention(results: TaskResults, subject: Arm | None) -> Iterator[AdviceMessage]:
    tasks = retention_tasks(results.study, results.task)
    if not tasks or (subject is not None and subject.summary.forgetting is None):
        has_limit = results.objective.max_forgetting is not None
        limit = " The limit on forgetting could not be applied." if has_limit else ""
        yield message("unscored_retention" if tasks else "no_retention", limit=limit)
        return
    for task in tasks:
        scores = results.base_scores(task.name)
        error = clustered_standard_error(scores) if scores.size else None
        if task.chance is None or error is None:
            continue
        base = float(scores.mean())
        if base - 2 * error <= task.chance:
            yield message(
                "retention_at_chance",
                other=task.name,
                base=Measured(base, POINTS),
                chance=Measured(task.chance, POINTS),
            )


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
        **_first_names(named),
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


def _units(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    if not results.has_separate_forgetting or subject.summary.forgetting is None:
        return
    role = "has no weight in this advice. Compare the two yourself, or set a limit on forgetting"
    if results.objective.max_forgetting is not None:
        role = "is held to objective.max_forgetting and has no other weight in this advice"
    yield message("different_units", task=results.task, role=role)


def _few_seeds(subject: Arm) -> Iterator[AdviceMessage]:
    seeds = subject.summary.seeds
    if seeds < FEWEST_SEEDS:
        name = arm_name(subject.summary)
        yield message(
            "few_seeds", arm=name, seeds=Counted(seeds, "seed"), fewest_seeds=FEWEST_SEEDS
        )


def _edges(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    candidate = next((c for c in results.choice.candidates if c.arm is subject), None)
    lr, rank = subject.summary.lr, subject.summary.rank
    if candidate is not None and len(candidate.lrs) > 1:
        edges = {candidate.lrs[0]: ("lowest", "lower"), candidate.lrs[-1]: ("highest", "higher")}
        if lr in edges:
            side, better = edges[lr]
            yield message(
                "rate_at_edge",
                lr=lr,
                arm=arm_name(subject.summary),
                side=side,
                better=better,
                rates_tried=len(candidate.lrs),
            )
    ranks = sorted({r for a in results.arms if (r := a.summary.rank) is not None})
    if rank is not None and len(ranks) > 1 and rank in (ranks[0], ranks[-1]):
        yield message("smallest_rank" if rank == ranks[0] else "largest_rank", rank=rank)


def _detectable(results: TaskResults, subject: Arm) -> Iterator[AdviceMessage]:
    rival = _rival(results, subject)
    gap = arm_difference(results.study, subject, rival, results.task)
    effect = None if gap is None else detectable(gap)
    if gap is None or effect is None:
        return
    yield message(
        "detectable",
        seeds=gap.seeds,
        n=Counted(gap.n, "test item"),
        sample=f"{gap.seeds} seeds" if gap.seeds > 1 else "these trained models",
        detectable=results.score(effect),
        arm=arm_name(subject.summary),
        rival="the base" if rival is None else arm_name(rival.summary),
    )


def _rival(results: TaskResults, subject: Arm) -> Arm | None:
    """LoRA's rival is full fine-tuning and the reverse; otherwise the next best arm."""
    choice = results.choice
    other = choice.best_lora if subject.summary.is_full else choice.best_full
    if other is not None:
        return other.arm
    rest = [c for c in choice.candidates if c.arm is not subject]
    return max(rest, key=lambda c: c.utility).arm if rest else None
