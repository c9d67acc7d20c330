"""Which trials of an adaptive study go on, and which seeds it trains next.

Every arm begins with its first seed. After a few shares of their own steps (*rungs*) the arms of a
task are scored on validation items, and those that lost stop. Later seeds are only trained for the
arms that the answer rests on. Functions of the records alone: their results do not depend on
the order of arms, on groups, or on the machine. No trial's test items are read; as in a grid, the
base's give the scale on which forgetting is weighed. Simulation and replay: docs/findings, adaptive
studies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Literal

import numpy as np
from scipy import special

from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.retention import net_comparisons
from rankscope.advise.select import (
    ArmChoice,
    Candidate,
    base_validation_score,
    choose_for,
    forgets_too_much,
    utility_function,
)
from rankscope.advise.statistics.estimates import (
    Comparison,
    cluster_index,
    clustered_standard_error,
)
from rankscope.advise.statistics.significance import ALPHA, FEWEST_ITEMS
from rankscope.errors import UserError
from rankscope.records import StudyRecords, TrialSpec, finished_trials

SEED_SPREAD = 0.5
"""Standard deviation between seeds that a stop allows for, in margins: with one seed of each arm it
cannot be measured."""

CONTENDING = 0.35
"""Level of the interval by which an arm goes on at the last rung. It holds for scores at a rung;
where arms are heading varies more, so this is no chance of an error. Higher is cheaper and errs
more often; chosen by simulation (docs/findings, adaptive studies)."""

FULL_RATES = 2
"""Learning rates of a configuration of full fine-tuning that are trained to the end, at least.
Every answer is a comparison with the best one, and at a rung that is often far behind."""

StopReason = Literal["worse", "outranked"]


@dataclass(frozen=True, slots=True)
class AdaptiveRule:
    """When arms of an adaptive study stop."""

    rungs: tuple[float, ...] = (0.2, 0.5)
    """Shares of a trial's own steps, ascending."""
    alpha: float = ALPHA
    """Chance that any arm within the margin of the best one is ever called worse."""

    def __post_init__(self) -> None:
        if list(self.rungs) != sorted(set(self.rungs)) or not all(0 < r < 1 for r in self.rungs):
            expected = "shares of the steps between 0 and 1, each larger than the one before"
            raise UserError("rungs", str(self.rungs), expected)

    def rates_kept(self, rung: int, declared: int, *, is_full: bool = False) -> int:
        """Most learning rates of one configuration that their order lets go on after a rung.

        They thin out evenly, as if the last rung left one: with two rungs, two of three rates pass
        the first. ``FULL_RATES`` of full fine-tuning always pass. At the last rung of LoRA an
        interval decides instead.
        """
        num_rungs, fewest = len(self.rungs), FULL_RATES if is_full else 1
        even = ceil(declared * (num_rungs - rung) / (num_rungs + 1))
        return fewest if self.is_last(rung) else max(fewest, even)

    def is_last(self, rung: int) -> bool:
        return rung == len(self.rungs) - 1


@dataclass(frozen=True, slots=True)
class Gap:
    """A difference with an interval that holds at every look at once, each end by itself."""

    low: float
    value: float
    high: float

    def is_worse(self, margin: float) -> bool:
        """Whether the first is shown to be worse than the second by more than the margin."""
        return self.high < -margin


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a trial stopped at a rung."""

    reason: StopReason
    """``worse``: its interval lies below minus the margin. ``outranked``: others were ahead, which
    shows nothing."""
    against: str
    """Id of the trial it was compared with."""
    gap: Gap
    """Its utility minus the other's."""
    projected: float | None = None
    """The same where the two are heading, if that decided; see ``stops_at_rung``."""


def sequential_interval(
    comparisons: Sequence[Comparison],
    weights: Sequence[float],
    looks: int,
    alpha: float = ALPHA,
    spread: float = 0.0,
) -> Gap:
    """Interval of a weighted sum of paired differences that is looked at ``looks`` times.

    Each end is missed at any look with a chance of at most ``alpha`` (Bonferroni; at a rung the
    models are others than at the last, so no sequence of sums has known correlations). Student's t
    with the units of the smallest task. Right-or-wrong items count two more, one for each side, so
    that few items that agree are not taken for certainty (Agresti & Min 2005). Endless with
    fewer than ``FEWEST_ITEMS`` units.

    Args:
        spread: standard deviation between the seeds of an arm.
    """
    value = variance = 0.0
    units = inf
    for comparison, weight in zip(comparisons, weights, strict=True):
        differences = comparison.item_means
        n = len(differences)
        labels = np.arange(n)
        if comparison.clusters is not None:
            labels = cluster_index(comparison.clusters, n)
        value += weight * float(differences.mean())
        units = min(units, int(labels.max()) + 1)
        if comparison.is_right_or_wrong:
            differences = np.append(differences, (1.0, -1.0))
            labels = np.append(labels, labels.max() + np.array([1, 2]))
        error = clustered_standard_error(differences, labels)
        variance += (weight * (error or 0.0)) ** 2
    variance += spread**2 * sum(1 / len(rows) for rows in comparisons[0].arms)
    if units < FEWEST_ITEMS:
        return Gap(-inf, value, inf)
    half = -float(special.stdtrit(units - 1, alpha / looks)) * sqrt(variance)
    return Gap(value - half, value, value + half)


def stops_at_rung(
    study: StudyRecords,
    task: str,
    rung: int,
    rule: AdaptiveRule,
    before: StudyRecords | None = None,
) -> dict[str, Stop]:
    """Trials of a task that stop at the rung of that index, by trial id.

    Arms are ordered by where they are heading: curves cross, and what has risen since the rung
    before goes on to rise. Before the last rung the learning rates of a configuration thin out in
    that order; ranks and methods learn at different speeds. At the last rung the rates of a
    configuration are compared with its best rate, and that rate with the *incumbent*, the arm that
    heads furthest and keeps the limit on forgetting. An arm stops if it cannot come within the
    margin of its rival, by an interval of level ``CONTENDING``; if the best rate stops, so does the
    whole configuration. The best LoRA arm never stops here. The gap that a stop states is that of
    the scores at the rung; one that rests on where the arms are heading states that too.

    Of full fine-tuning the rates thin out at every rung, and nothing else stops them.

    Args:
        study: the study as if training had ended at the rung: its trials that reached it are
            ``done`` with one seed each and have the validation items scored there.
        before: the same at the rung before; None at the first.
    """
    standing = _Standing.of(study, task, _arms(study, task), rule)
    heading = standing if before is None else standing.continued(before, rung)
    is_last, look = rule.is_last(rung), heading.at_this_look()
    best_lora = next((a.summary.label for a in heading.ranked if a.summary.is_lora), None)
    rates: dict[tuple[object, ...], set[float]] = {}
    for spec in (t.spec for t in study.trials if t.spec.task == task):
        rates.setdefault(spec.arm_without_lr, set()).add(spec.lr)

    def stop(arm: Arm, other: Arm, *, is_outranked: bool = True) -> dict[str, Stop]:
        """The stop of an arm that is worse than another or outranked by it; empty otherwise."""
        gap, trial_id = standing.gap(arm, other), _trial_id(arm)
        if gap.is_worse(study.config.objective.margin):
            return {trial_id: Stop("worse", _trial_id(other), gap)}
        if not is_outranked:
            return {}
        projected = None if before is None else heading.difference(arm, other)
        return {trial_id: Stop("outranked", _trial_id(other), gap, projected)}

    stops: dict[str, Stop] = {}
    for configuration, declared in rates.items():
        ranked = [a for a in heading.ranked if a.trials[0].spec.arm_without_lr == configuration]
        is_full = bool(ranked) and ranked[0].summary.is_full
        kept = rule.rates_kept(rung, len(declared), is_full=is_full)
        if is_full:
            for arm in ranked[kept:]:
                stops |= stop(arm, ranked[0])
            continue
        for position, arm in enumerate(ranked[1:], start=1):
            is_outranked = look.is_worse(arm, ranked[0]) if is_last else position >= kept
            stops |= stop(arm, ranked[0], is_outranked=is_outranked)
        is_compared = is_last and ranked and ranked[0].summary.label != best_lora
        if is_compared and look.is_worse(ranked[0], incumbent := heading.ranked[0]):
            for arm in ranked:
                # What an interval shows counts for more than an order.
                stops |= {
                    i: s
                    for i, s in stop(arm, incumbent).items()
                    if i not in stops or s.reason == "worse"
                }
    return stops


def finalists(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    """The arms that the answer rests on, most important first: those to score on the test split.

    The best arm by utility, the chosen one (the smallest rank within the margin), the best fully
    fine-tuned one, the next smaller rank than the chosen one, which must not be as good, and the
    LoRA arms that would replace full fine-tuning.
    """
    return _finalists(choose_for(study, task, _arms(study, task)))


def next_trials(study: StudyRecords, task: str, rule: AdaptiveRule) -> list[TrialSpec]:
    """The next seed of every finalist within the margin of the best arm.

    Empty once all of them have all their seeds. Call it again when these trials have ended: the
    finalists may then be others.

    Args:
        study: its trials with their statuses; those that never began are ``planned``.
    """
    arms = _arms(study, task)
    choice = choose_for(study, task, arms)
    named = _finalists(choice)
    if choice.best is None or choice.best_lora is None:
        sure = named[:1]
    else:  # LoRA may replace full fine-tuning only by a comparison that could show a difference
        sure = (choice.best.arm, choice.best_lora.arm)
    utilities = _Standing.of(study, task, arms, rule).utilities
    waiting: dict[tuple[object, ...], list[TrialSpec]] = {}
    for trial in study.trials:
        if trial.status == "planned":
            waiting.setdefault(trial.spec.arm, []).append(trial.spec)
    return [
        waiting[arm.trials[0].spec.arm][0]
        for arm in named
        if arm.trials[0].spec.arm in waiting
        and (
            any(arm is other for other in sure)
            or utilities[arm.summary.label]
            >= utilities[named[0].summary.label] - study.config.objective.margin
        )
    ]


@dataclass(frozen=True, slots=True)
class _Standing:
    """Arms of one task with validation scores, in order of their utility."""

    study: StudyRecords
    task: str
    rule: AdaptiveRule
    ranked: tuple[Arm, ...]
    """Highest utility first, those over the limit on forgetting last."""
    utilities: dict[str, float]
    looks: int
    """Number of intervals in the whole study of this task."""

    @classmethod
    def of(
        cls, study: StudyRecords, task: str, arms: Iterable[Arm], rule: AdaptiveRule
    ) -> "_Standing":
        scored = tuple(a for a in arms if a.summary.validation_score is not None)
        objective = study.config.objective
        utility = utility_function(scored, base_validation_score(study, task), objective)
        utilities = {
            a.summary.label: utility(a, a.summary.seeds / (a.summary.seeds + a.summary.failed))
            for a in scored
        }
        arms_declared = len({t.spec.arm for t in study.trials if t.spec.task == task})
        looks = max(1, arms_declared - 1) * (len(rule.rungs) + 1)
        return cls(study, task, rule, scored, {}, looks).ordered_by(utilities)

    def ordered_by(self, utilities: dict[str, float]) -> "_Standing":
        """The same arms with these utilities."""

        def order(arm: Arm) -> tuple[object, ...]:
            summary = arm.summary
            over = forgets_too_much(arm, self.study.config.objective)
            size = summary.trainable_parameters or (inf if summary.is_full else summary.rank or 0)
            return over, -utilities[summary.label], size, summary.lr, summary.label

        return replace(self, ranked=tuple(sorted(self.ranked, key=order)), utilities=utilities)

    def continued(self, before: StudyRecords, rung: int) -> "_Standing":
        """The same with utilities at the end of training if they go on as since the rung before.

        Args:
            before: as for ``stops_at_rung``.
        """
        present = [a for a in _arms(before, self.task) if a.summary.label in self.utilities]
        earlier = _Standing.of(before, self.task, present, self.rule).utilities
        start, now = self.rule.rungs[rung - 1 : rung + 1]
        share = (1 - now) / (now - start)
        return self.ordered_by(
            {
                label: utility + share * (utility - earlier.get(label, utility))
                for label, utility in self.utilities.items()
            }
        )

    def at_this_look(self) -> "_Standing":
        """The same with intervals of level ``CONTENDING`` that hold at this look alone."""
        return replace(self, rule=replace(self.rule, alpha=CONTENDING), looks=1)

    def is_worse(self, arm: Arm, other: Arm) -> bool:
        """Whether an arm is shown to be worse than another by more than the margin."""
        return self.gap(arm, other).is_worse(self.study.config.objective.margin)

    def difference(self, arm: Arm, other: Arm) -> float:
        return self.utilities[arm.summary.label] - self.utilities[other.summary.label]

    def gap(self, arm: Arm, other: Arm) -> Gap:
        """Utility of an arm minus that of another; endless where they share too few items."""
        objective = self.study.config.objective
        value = self.difference(arm, other)
        found = net_comparisons(
            self.study, self.task, arm.finished, other.finished, objective.weights, "validation"
        )
        if found is None:
            return Gap(-inf, value, inf)
        spread = SEED_SPREAD * objective.margin
        looked = sequential_interval(*found, self.looks, self.rule.alpha, spread)
        # Costs, failed trials and a heading move the utility; their noise is not counted.
        shift = value - looked.value
        return Gap(looked.low + shift, value, looked.high + shift)


def _arms(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    """The arms of a task with a finished trial."""
    of_task = [t for t in study.trials if t.spec.task == task]
    finished = {t.spec.arm for t in finished_trials(of_task)}
    begun = tuple(t for t in of_task if t.spec.arm in finished)
    return summarize_arms(replace(study, trials=begun)).get(task, ())


def _finalists(choice: ArmChoice) -> tuple[Arm, ...]:
    named = (
        choice.best,
        choice.chosen,
        choice.best_full,
        _next_smaller(choice),
        choice.best_lora,
        choice.small_lora,
    )
    return tuple({c.arm.summary.label: c.arm for c in named if c is not None}.values())


def _trial_id(arm: Arm) -> str:
    return arm.finished[0].spec.trial_id


def _next_smaller(choice: ArmChoice) -> Candidate | None:
    """The next smaller rank than the chosen arm's, of the same method and modules."""
    chosen = choice.chosen
    if chosen is None or chosen.arm.summary.rank is None:
        return None
    series, rank = chosen.arm.trials[0].spec.arm_without_rank, chosen.arm.summary.rank
    smaller = [
        c
        for c in choice.candidates
        if (c.arm.summary.rank or rank) < rank and c.arm.trials[0].spec.arm_without_rank == series
    ]
    return max(smaller, key=lambda c: (c.arm.summary.rank or 0, c.utility), default=None)
