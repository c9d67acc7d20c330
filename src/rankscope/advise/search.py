"""The next trials of a study: its first design, then rounds of the trials that may be the best.

Thompson sampling chooses a round (Thompson 1933; Russo et al. 2018). An arm is trained as often as
it is the best in a draw from the posterior over all candidates, untrained ones included. Every
function here is a function of records, so a study that was killed continues as it would have. What
this costs and misses: benchmarks/results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import inf, nan

import numpy as np

from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.checks import RIVAL
from rankscope.advise.decide import Answer, decide
from rankscope.advise.evidence import axes_of
from rankscope.advise.results import expected, hopeful, task_results
from rankscope.advise.value import value_of_round, values_of_trials
from rankscope.records import SURE, StudyRecords, TrialSpec

TRIALS_OF_ROUND = 3  # Adapters that train together share the base's work
WORTH = 0.02  # Least expected fall of the regret for which a trial is trained, in margins


@dataclass(frozen=True)
class NextRound:
    """The trials that a study should train next, and the expected result."""

    trials: tuple[TrialSpec, ...] = ()
    leader: str = ""  # Label of the arm of the highest expected net gain
    regret: float = inf  # Regret of the answer so far; of none before anything was scored
    after: float = inf  # Expected of the answer after this round


def first_designs(trials: Sequence[TrialSpec], tasks: Iterable[str]) -> tuple[TrialSpec, ...]:
    """Return the first designs of all tasks that models train on, the most telling trials first."""
    of_task = ([t for t in trials if t.task == task and t.trains] for task in tasks)
    designs = zip_longest(*map(_first_design, of_task))
    return tuple(trial for of in designs for trial in of if trial is not None)


def _first_design(trials: Iterable[TrialSpec]) -> list[TrialSpec]:
    """Return a cross of the arms of one task, each with its first seed, the most telling first.

    The largest family of ranks and rates gives the middle rank at its middle, highest and lowest
    rate, and the highest and the lowest rank at their middle rate. Every other kind of arm, such as
    full fine-tuning, gives its middle.
    """
    kinds: dict[object, list[TrialSpec]] = {}
    for trial in _first_seeds(trials):
        kinds.setdefault(trial.arm_without_rank, []).append(trial)
    families = sorted(kinds.values(), key=len, reverse=True)
    middle, others = [_middle(of) for of in families], list[TrialSpec]()
    for family in families[:1]:
        of_rank = _rates(family, middle[0])
        ends = [[t for t in family if t.rank == r] for r in _ends({t.rank or 0 for t in family})]
        others = [*map(_middle, filter(None, ends)), of_rank[-1], of_rank[0]]
    return list(dict.fromkeys([*middle, *others]))


def _middle(family: Sequence[TrialSpec]) -> TrialSpec:
    """Return the middle rate of the middle rank."""
    ranks = sorted({t.rank or 0 for t in family})
    of_rank = [t for t in family if (t.rank or 0) == ranks[len(ranks) // 2]]
    return _rates(of_rank, of_rank[0])[len(of_rank) // 2]


def _rates(family: Sequence[TrialSpec], of: TrialSpec) -> list[TrialSpec]:
    """Return the arms of one rank by their effective rate, which depends on alpha, ascending."""
    return sorted((t for t in family if t.rank == of.rank), key=lambda t: axes_of(t, ())[-1])


def _ends(ranks: set[int]) -> list[int]:
    return list(dict.fromkeys([max(ranks), min(ranks)]))


def next_round(
    study: StudyRecords,
    task: str,
    candidates: Sequence[TrialSpec],
    beyond: Sequence[TrialSpec] = (),
    until: float | None = None,
    num_trials: int = TRIALS_OF_ROUND,
) -> NextRound:
    """Choose the trials of the next round.

    There are none if the answer's arm has two seeds, and it is sure enough or no trial is worth it.

    Args:
        candidates: trials that may be trained, in the order of their seeds.
        beyond: such trials beyond the ends of the study's rates and ranks; they count only beside
            the best arm and its rivals, if these lie at an end.
        until: probability of being within the margin of the best; by default ``SURE``.
    """
    begun = _begun_arms(study, task)
    known = {arm.trials[0].spec.arm for arm in begun}
    new = hopeful(_first_seeds(t for t in candidates if t.arm not in known), begun)
    arms = summarize_arms(study)[task]
    results = task_results(study, task, arms, new)
    rivals = [a for a in results.candidates[1:] if expected(a.summary).p_within_margin >= RIVAL]
    specs = [*(arm.trials[0].spec for arm in begun), *candidates]
    at_ends = [*results.candidates[:1], *rivals] or _lowest(begun)
    more = [t for arm in at_ends for t in _beside(arm.trials[0].spec, specs, beyond)]
    if more := hopeful(_first_seeds(more), begun):
        new += more
        results = task_results(study, task, arms, new)
    answer, net = decide(results), results.net
    if not any(arm.finished for arm in begun):  # all failed: from the highest rate that may do
        new.sort(key=lambda trial: -axes_of(trial, ())[-1])
        return NextRound(tuple(new[:num_trials]))
    if net is None or results.fit_failed is not None:
        return NextRound()
    regret = float(net.regret.min())
    leader = results.candidates[0].summary.label if results.candidates else ""
    last = NextRound(_second_seed(answer, candidates), leader, regret, regret)
    if (answer.p_within_margin or 0.0) >= (until or SURE):
        return last
    settings = [results.arms[i].trials[0].spec.arm for i in results.allowed]
    settings += [new[i].arm for i in results.untried]
    waiting: dict[object, list[TrialSpec]] = {}
    for trial in (*candidates, *beyond):
        waiting.setdefault(trial.arm, []).append(trial)
    can_train = [bool(waiting.get(arm)) for arm in settings]
    if not (values_of_trials(net)[can_train] >= WORTH * net.margin).any():
        return last
    best, num_begun = net.draws.argmax(axis=1), sum(len(arm.trials) for arm in begun)
    chosen, columns = list[TrialSpec](), list[int]()
    for draw in np.random.default_rng(num_begun).permutation(len(best)).tolist():
        column = int(best[draw])
        if can_train[column] and column not in columns and net.draws[draw, column] > 0:
            chosen.append(waiting[settings[column]][0])
            columns.append(column)
        if len(chosen) == num_trials:
            break
    fall = value_of_round(net, columns) if columns else 0.0
    return NextRound(tuple(chosen), leader, regret, max(0.0, regret - fall))


def _second_seed(answer: Answer, candidates: Sequence[TrialSpec]) -> tuple[TrialSpec, ...]:
    """Return a further trial of the answer's arm if only one seed supports it, which may be
    lucky."""
    arm = answer.subject if answer.chosen is not None else None
    begun = [t.spec for t in arm.trials if t.status not in ("planned", "skipped")] if arm else []
    return tuple(t for t in candidates if len(begun) == 1 and t.arm == begun[0].arm)[:1]


def _first_seeds(trials: Iterable[TrialSpec]) -> list[TrialSpec]:
    firsts: dict[object, TrialSpec] = {}
    for trial in trials:
        firsts.setdefault(trial.arm, trial)
    return list(firsts.values())


def _lowest(begun: Sequence[Arm]) -> list[Arm]:
    """Return the arm of the lowest rate, if every arm failed: a lower rate may do."""
    return sorted(begun, key=lambda arm: axes_of(arm.trials[0].spec, ())[-1])[:1]


def _beside(
    best: TrialSpec, specs: Sequence[TrialSpec], beyond: Sequence[TrialSpec]
) -> list[TrialSpec]:
    """Return the next rates and ranks beyond the lists, if the best arm lies at an end of them."""

    def rate(spec: TrialSpec) -> float:
        return spec.lr if spec.arm_without_lr == best.arm_without_lr else nan

    def rank(spec: TrialSpec) -> float:
        is_alike = spec.arm_without_rank == best.arm_without_rank and spec.lr == best.lr
        return spec.rank or nan if is_alike else nan

    found = list[TrialSpec]()
    for of in (rate, rank):
        known, own = [of(spec) for spec in specs], of(best)
        others = sorted((t for t in _first_seeds(beyond) if of(t) > 0), key=of)
        if not any(value > own for value in known):
            found += [trial for trial in others if of(trial) > own][:1]
        if not any(value < own for value in known):
            found += [trial for trial in others if of(trial) < own][-1:]
    return found


def _begun_arms(study: StudyRecords, task: str) -> list[Arm]:
    """Return the arms of a task with a trial that has begun."""
    return [arm for arm in summarize_arms(study)[task] if arm.has_begun]


def finalists(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    """Return the arms that the answer names, most important first, to score on the test split.

    They are the recommended arm, the best one, the best of two ranks and of full fine-tuning, and
    the smaller ranks that may do.
    """
    results = task_results(study, task, summarize_arms(study)[task])
    answer = decide(results)
    by_label = {arm.summary.label: arm for arm in results.arms}
    smaller = [by_label[rank.label] for rank in answer.ranks]
    ranks: dict[int | None, Arm] = {}
    for arm in results.candidates:
        if arm.summary.is_lora:
            ranks.setdefault(arm.summary.rank, arm)
    named = (answer.subject, *results.candidates[:1], *[*ranks.values()][:2], results.best_full)
    kept = {a.summary.label: a for a in (*named, *smaller) if a is not None}
    return tuple(kept.values())
