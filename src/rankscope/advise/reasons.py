"""Reasons behind a decision, known failure patterns, and the limits of its evidence.

Numbers without a split are those of the test split.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.axes import axis_texts
from rankscope.advise.checks import MOST_NAMED
from rankscope.advise.messages import arm_name, capitalized
from rankscope.advise.results import TaskResults, expected
from rankscope.advise.retention import retention_tasks
from rankscope.formatting import (
    POINTS,
    amount,
    count,
    difference,
    interval,
    join_names,
    percent,
    score_text,
    unit_of,
)
from rankscope.records import BASE, AdviceKind, AdviceMessage, ArmSummary, Estimate

SATURATED = 0.95  # Base accuracy from which little is left to gain
NEGATIVE_TRANSFER = 0.10
"""Relative fall on another task that counts as negative transfer (arXiv 2512.15634)."""
_LARGE = 0.25  # Share of the model's parameters from which an adapter is called large
OVER_FORGETTING = 0.5  # Forgetting as a share of the gain from which it is reported


def reasons_for(results: TaskResults, subject: Arm | None) -> tuple[AdviceMessage, ...]:
    """Return reasons that describe ``subject``, then diagnostics and caveats of the whole task."""
    arm = None if subject is None else subject.summary
    said: dict[AdviceKind, Iterable[str]] = {
        "forgetting": _forgetting(results, arm),
        "transfer": _transfer(results, arm),
        "axis": axis_texts(results),
        "diagnostic": _diagnostics(results, subject),
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
    unit, change = results.retention_unit, -arm.forgetting
    tasks = ", ".join(
        f"{_change(results, name, e)} ({interval(e, unit_of(results.study.task(name).score_unit))})"
        for name, e in sorted(arm.retention.items())
    )
    text = f"On the retention tasks its score changes by {difference(change.value, unit)} "
    counts = f"{count(change.n, 'item')}, {count(change.seeds, 'seed')}"
    yield f"{text}({interval(change, unit)}, {counts}): {tasks}."


def _transfer(results: TaskResults, arm: ArmSummary | None) -> Iterator[str]:
    if arm is not None and arm.transfer:
        falls_first = sorted(arm.transfer.items(), key=lambda pair: pair[1].value)
        unclear = {True: "", False: " (unclear)"}
        changes = [_change(results, n, e) + unclear[e.is_clear_of_zero] for n, e in falls_first]
        yield f"On other tasks it changes the score by: {', '.join(changes)}."


def _change(results: TaskResults, task: str, change: Estimate) -> str:
    unit = unit_of(results.study.task(task).score_unit)
    return f"{task} {difference(change.value, unit)}"


# --- failure patterns -----------------------------------------------------------------------------


def _diagnostics(results: TaskResults, subject: Arm | None) -> Iterator[str]:
    """Yield every failure pattern that the task's arms, or ``subject``, show, with a next step."""
    yield from _worse_than_base(results)
    yield from _saturated(results)
    yield from _near_guessing(results, subject.summary if subject else None)
    if subject is not None and subject.summary.trains:
        yield from _large(results, subject.summary)
        yield from _negative_transfer(results, subject)
        yield from _over_forgetting(results, subject)
    yield from _flat_in_rank(results)


def _worse_than_base(results: TaskResults) -> Iterator[str]:
    arms = [arm.summary for arm in results.arms if arm.summary.trains]
    gains = [(arm, arm.gain) for arm in arms if arm.gain is not None]
    worse = [(arm, gain) for arm, gain in gains if gain.is_below(0)]
    if not worse:
        return
    arm, gain = min(worse, key=lambda pair: pair[1].value)
    yield (
        f"{len(worse)} of {count(len(gains), 'configuration')} are worse than the base on "
        f"{results.task} (their 95 % intervals end below it). The worst, {arm_name(arm)}, scores "
        f"{amount(gain.value, results.unit)} less."
    )


def _saturated(results: TaskResults) -> Iterator[str]:
    base = results.base_score(results.task)
    if results.unit == POINTS and base is not None and base >= SATURATED:
        yield (
            f"The base already scores {score_text(base, POINTS)} on {results.task}: at most "
            f"{amount(1 - base, POINTS)} are left to gain."
        )


def _large(results: TaskResults, arm: ArmSummary) -> Iterator[str]:
    total = results.study.model.num_parameters
    if arm.is_lora and total and arm.trainable_parameters >= _LARGE * total:
        share = f"{100 * arm.trainable_parameters / total:.0f} % of the model's parameters"
        yield f"{arm_name(arm)} trains {share}, so it saves little over full fine-tuning."


def _near_guessing(results: TaskResults, arm: ArmSummary | None) -> Iterator[str]:
    """Report the scores of guessing and of the most frequent answer, if the base or the arm is
    hardly better."""
    items = results.study.results.get((BASE, results.task, "test"), ())
    golds = Counter(item.gold for item in items if item.gold)
    levels = {"guessing": results.record.chance or 0.0}
    if golds and golds.most_common(1)[0][1] > 1:
        levels["the most frequent answer"] = golds.most_common(1)[0][1] / golds.total()
    base = results.study.evals.get((BASE, results.task, "test"))
    found = [] if base is None else [base.score - 2 * (base.standard_error or 0.0)]
    found += [arm.score.low] if arm and arm.score and arm.score.low is not None else []
    most = max(levels.values())
    if results.unit == POINTS and most and found and min(found) <= most:
        named = " and ".join(f"{score_text(v, POINTS)} by {k}" for k, v in levels.items() if v)
        yield f"One can score {named}."


def _negative_transfer(results: TaskResults, subject: Arm) -> Iterator[str]:
    units = {t.name: t.score_unit for t in results.study.tasks}
    for name, change in subject.summary.transfer.items():
        base = results.base_score(name)
        if units[name] != "accuracy" or not base:
            continue
        relative = change.value / base
        if relative < -NEGATIVE_TRANSFER and change.is_below(0):
            yield (
                f"Negative transfer: {name} falls by {amount(change.value, POINTS)}, "
                f"{-100 * relative:.0f} % of the base's {score_text(base, POINTS)}."
            )


def _over_forgetting(results: TaskResults, subject: Arm) -> Iterator[str]:
    arm = subject.summary
    forgetting = arm.forgetting
    if forgetting is None or arm.gain is None:
        return
    of = None if arm.expected is None else arm.expected.forgetting
    if not (forgetting.is_above(0) or (of is not None and of.low > 0)):
        return
    tasks = retention_tasks(results.study, results.task)
    scores = [b for t in tasks if (b := results.base_score(t.name))]
    relative = 0.0
    if scores and results.retention_unit == POINTS:
        relative = forgetting.value / (sum(scores) / len(scores))
    half_of_gain = results.unit == results.retention_unit and (
        forgetting.value >= OVER_FORGETTING * max(arm.gain.value, 0.0)
    )
    if half_of_gain or relative > NEGATIVE_TRANSFER:
        yield (
            f"Over-forgetting: {arm_name(arm)} loses "
            f"{amount(forgetting.value, results.retention_unit)} on the retention tasks for "
            f"{difference(arm.gain.value, results.unit)} on {results.task}."
        )


def _flat_in_rank(results: TaskResults) -> Iterator[str]:
    """Report that the smallest and the largest rank of the widest series are alike, if they are."""
    pairs = [c for c in results.comparisons if c.kind == "ranks"]
    ranks = {a.summary.label: a.summary.rank or 0 for a in results.arms}
    widest = max(pairs, key=lambda c: ranks[c.first_label] - ranks[c.second_label], default=None)
    margin = results.margin
    nets = [
        a.summary.expected.net.value for a in results.candidates if a.summary.expected is not None
    ]
    is_flat = bool(nets) and max(nets) - min(nets) < margin  # No rank between them stands out
    if widest is not None and is_flat and -margin < widest.net.low and widest.net.high < margin:
        yield (
            f"From r={ranks[widest.second_label]} to r={ranks[widest.first_label]} the "
            f"{results.net_name} moves by less than {amount(margin, results.net_unit)} (95 % "
            "interval): on this task the rank hardly matters."
        )


# --- caveats --------------------------------------------------------------------------------------


def _caveats(results: TaskResults, subject: Arm | None) -> Iterator[str]:
    """Yield limits of the task, or of the arm ``subject``, that no trust check states."""
    yield from _learning_rates(results)
    yield from _over_limit(results)


def _learning_rates(results: TaskResults) -> Iterable[str]:
    """Report ranks that differ in nothing else, but were tried at one learning rate or unequal
    ones."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in results.trials:
        if trial.spec.rank is not None and trial.spec.lr:
            rates = series.setdefault(trial.spec.arm_without_rank, {})
            rates.setdefault(trial.spec.rank, set()).add(trial.spec.lr)
    best: dict[tuple[object, int | None], Arm] = {}
    for arm in results.candidates:  # highest first: of several alphas the best represents its rank
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
    """Name ranks whose rates confound their comparison; empty if none does.

    ``at_ends`` are ranks whose best rate is the lowest or highest of its list, or unknown.
    """
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
            "difference between ranks may be one between learning rates."
        )
    if len(tried) > 1:
        return ""
    all_ranks = "Both ranks" if len(by_rank) == 2 else f"All {len(by_rank)} ranks"
    return (
        f"{all_ranks} were trained at one learning rate ({tried[0]:g}), so a difference between "
        "ranks may be one between learning rates."
    )


def _over_limit(results: TaskResults) -> Iterator[str]:
    limit, excluded = results.objective.max_forgetting, results.over_limit
    if limit is None or not excluded:
        return
    arms = [arm.summary for arm in excluded]
    named = [f"{arm.label} ({percent(expected(arm).p_over_limit or 0.0)})" for arm in arms]
    forget, were = ("forgets", "was") if len(arms) == 1 else ("forget", "were")
    yield (
        f"{count(len(arms), 'configuration')} of {len(results.arms)} probably {forget} more than "
        f"the {amount(limit, results.retention_unit)} allowed and {were} left out: "
        f"{join_names(named, MOST_NAMED)}."
    )
