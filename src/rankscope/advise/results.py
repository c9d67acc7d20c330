"""Results on one training task, from which all advice on it follows."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import inf, log
from sys import maxsize

import numpy as np

from rankscope.advise.arms import Arm
from rankscope.advise.evidence import Measured, axes_of, measure
from rankscope.advise.net_gains import NetGains, draw_changes, net_gains
from rankscope.advise.posterior import Array, Posterior
from rankscope.advise.retention import net_parts, retention_tasks
from rankscope.advise.value import Untried, with_untried
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import Unit, mean_unit, unit_of
from rankscope.records import (
    BASE,
    FAILED,
    OVER_BUDGET,
    ArmComparison,
    ArmSummary,
    ExpectedChange,
    ExpectedGain,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    TrialSpec,
)


@dataclass(frozen=True)
class TaskResults:
    """The arms of one training task, the posterior of their net gains, and the units of numbers."""

    study: StudyRecords
    task: str
    arms: tuple[Arm, ...]  # With what the posterior says of each
    measured: tuple[Measured, ...] = ()  # Changes on the training task and every retention task
    net: NetGains | None = None  # Net gains of ``allowed``; None if no arm was scored
    gain: Array | None = None  # Draws of the training task's change, by ``allowed``
    scored: tuple[int, ...] = ()  # Places in ``arms``
    allowed: tuple[int, ...] = ()  # Places of those that probably keep the limit on forgetting
    untried: tuple[int, ...] = ()
    """Indices, among the untried arms, of those in the last columns of ``net``."""
    fit_failed: str | None = None  # Why the posterior is that of the flat prior

    @property
    def objective(self) -> ObjectiveConfig:
        return self.study.config.objective

    @property
    def record(self) -> TaskRecord:
        return self.study.task(self.task)

    @property
    def unit(self) -> Unit:
        return unit_of(self.record.score_unit)

    @property
    def retention_unit(self) -> Unit:
        """Unit of forgetting; points unless all retention tasks are in nats."""
        return mean_unit([t.score_unit for t in retention_tasks(self.study, self.task)])

    @property
    def net_unit(self) -> Unit:
        """Unit of net gains: the training task's, or that of forgetting if only forgetting
        counts."""
        return self.unit if self.objective.in_domain else self.retention_unit

    @property
    def margin(self) -> float:
        """Difference of net gains that counts as small."""
        return self.objective.margin

    @property
    def net_name(self) -> str:
        """Name of the quantity that compares arms; the gain alone if forgetting has no weight."""
        is_gain = [m.part.task for m in self.measured if m.part.weight] == [self.task]
        return "gain" if is_gain else "net gain"

    @property
    def trials(self) -> tuple[TrialRecords, ...]:
        return tuple(t for arm in self.arms for t in arm.trials)

    @property
    def failed(self) -> tuple[TrialRecords, ...]:
        return tuple(t for t in self.trials if t.status in FAILED)

    @property
    def over_budget(self) -> tuple[TrialRecords, ...]:
        """Trials that the answer of a search asked for, and the budget did not pay for."""
        return tuple(t for t in self.trials if t.status == "skipped" and t.failure == OVER_BUDGET)

    @property
    def waiting(self) -> int:
        return sum(t.status in ("planned", "trained") for t in self.trials)

    def draws_of(self, arm: Arm) -> Array:
        """Return the draws of one arm's net gain, (draws,)."""
        assert self.net is not None
        labels = [self.arms[i].summary.label for i in self.allowed]
        return np.asarray(self.net.draws[:, labels.index(arm.summary.label)])

    @cached_property
    def candidates(self) -> tuple[Arm, ...]:
        """Every configuration at its rate of the highest expected net gain; highest first."""

        def net(arm: Arm) -> float:
            return expected(arm.summary).net.value

        first: dict[object, Arm] = {}
        for arm in sorted((self.arms[i] for i in self.allowed), key=net, reverse=True):
            first.setdefault(arm.trials[0].spec.arm_without_lr, arm)
        return tuple(first.values())

    @property
    def best_full(self) -> Arm | None:
        return next((a for a in self.candidates if a.summary.is_full), None)

    @property
    def best_lora(self) -> Arm | None:
        return next((a for a in self.candidates if a.summary.is_lora), None)

    @property
    def best_prompt(self) -> Arm | None:
        return next((a for a in self.candidates if not a.summary.trains), None)

    @cached_property
    def comparisons(self) -> tuple[ArmComparison, ...]:
        return tuple(_compared(self))

    @property
    def over_limit(self) -> tuple[Arm, ...]:
        """Arms that probably forget more than the study allows."""
        return tuple(self.arms[i] for i in self.scored if i not in self.allowed)

    def rates_of(self, arm: Arm, *, begun: bool = False) -> tuple[float, ...]:
        """Return the learning rates for the arm's other settings, ascending.

        Rates that a search left out count, because its probabilities account for them. ``begun``
        leaves them out.
        """
        settings = arm.trials[0].spec.arm_without_lr
        has_others = self.study.config.strategy == "search" and not begun
        alike = [a for a in self.arms if a.trials[0].spec.arm_without_lr == settings]
        return tuple(sorted({a.summary.lr for a in alike if a.has_begun or has_others}))

    @property
    def hidden_size_rank(self) -> int:
        """Upper bound of the useful ranks: one side of every target is the hidden size, or less."""
        return self.study.model.hidden_size or maxsize  # imported scores do not state it

    def base_score(self, task: str) -> float | None:
        record = self.study.evals.get((BASE, task, "test"))
        return None if record is None else record.score


def _compared(results: TaskResults) -> Iterator[ArmComparison]:
    """Compare each LoRA candidate with full fine-tuning, and ranks with each other.

    Each rank is compared with the next smaller one, and the largest with the smallest.
    """
    if results.net is None or results.gain is None:
        return
    columns = {results.arms[i].summary.label: k for k, i in enumerate(results.allowed)}
    full = results.best_full
    pairs = [("full", arm, full) for arm in results.candidates if full and not arm.summary.is_full]
    series: dict[object, dict[int, Arm]] = {}
    for arm in results.candidates:
        if arm.summary.is_lora and arm.summary.rank is not None:
            # Highest first: of several alphas the best one represents its rank.
            of_rank = series.setdefault(arm.trials[0].spec.arm_without_rank, {})
            of_rank.setdefault(arm.summary.rank, arm)
    for of_rank in series.values():
        ranked = [of_rank[rank] for rank in sorted(of_rank)]
        pairs += [("ranks", large, small) for small, large in pairwise(ranked)]
        if len(ranked) > 2:
            pairs.append(("ranks", ranked[-1], ranked[0]))
    for kind, first, second in pairs:
        one, other = (columns[arm.summary.label] for arm in (first, second))
        more, gained = (of[:, one] - of[:, other] for of in (results.net.draws, results.gain))
        yield ArmComparison(
            kind="full" if kind == "full" else "ranks",
            first_label=first.summary.label,
            second_label=second.summary.label,
            net=change_of(more),
            gain=change_of(gained),
            p_better=float((more > 0).mean()),
            p_within_margin=float((more >= -results.margin).mean()),
            p_gain_within_margin=float((gained >= -results.margin).mean()),
        )


def change_of(draws: Array) -> ExpectedChange:
    """Return the mean of draws (D,) and the ends of their 95 % interval."""
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return ExpectedChange(value=float(draws.mean()), low=low, high=high)


def expected(arm: ArmSummary) -> ExpectedGain:
    """Return the expectation of an arm that was scored."""
    assert arm.expected is not None
    return arm.expected


def task_results(
    study: StudyRecords, task: str, arms: Sequence[Arm], untried: Sequence[TrialSpec] | None = None
) -> TaskResults:
    """Draw the posteriors of a training task's arms, and summarize each arm by them.

    Args:
        untried: further trials that may be best; by default those that a search has not begun.
    """
    untried = _left_out(study, arms) if untried is None else untried
    trials = [arm.trials for arm in arms]
    parts = net_parts(study, task)
    found = {part.task: measure(study, part, trials) for part in parts}
    measured = tuple(m for m in found.values() if m is not None)
    counts = [part.task for part in parts if part.weight]
    having = [set(m.places) if (m := found[name]) else set() for name in counts]
    if not having or not set.intersection(*having):  # No arm has every score that counts
        return TaskResults(study, task, tuple(arms))
    number = len(arms)
    others = [_settings(spec, arms) for spec in untried]
    candidates = [with_untried(m, others, number) for m in measured]
    posteriors, failure = draw_changes(candidates)
    limit = study.config.objective.max_forgetting
    net, places = weighed(study, arms, candidates, posteriors)
    changes = _changes_by_place(candidates, posteriors)
    forgetting = forgotten(changes, task, study)
    over = {i: float((d > limit).mean()) for i, d in forgetting.items() if limit is not None}
    columns = [k for k, i in enumerate(places) if over.get(i, 0.0) <= 0.5]
    kept, judged = net.of(columns), list(arms)
    # A place is an index into ``arms``, a column one into ``scored``; ``kept`` has ``columns``
    # alone.
    place_of = {column: k + 1 for k, column in enumerate(columns)}
    scored = tuple(place for place in places if place < number)
    for column, place in enumerate(scored):
        draws, at = net.draws[:, column], place_of.get(column)
        lost = forgetting.get(place)
        gained = ExpectedGain(
            net=change_of(draws),
            changes={name: change_of(d) for name, d in changes[place].items()},
            forgetting=None if lost is None else change_of(lost),
            p_better=float((draws > 0).mean()),
            p_within_margin=0.0 if at is None else float(kept.p_within_margin[at]),
            p_best=0.0 if at is None else float(kept.p_best[at]),
            regret=float((kept.best - draws).mean()),
            p_over_limit=over.get(place),
        )
        judged[place] = arms[place].updated(expected=gained)
    allowed = tuple(places[k] for k in columns if places[k] < number)
    gains = [changes[i][task] for i in allowed if task in changes[i]]
    return TaskResults(
        study=study,
        task=task,
        arms=tuple(judged),
        measured=measured,
        net=kept,
        gain=np.stack(gains, axis=1) if gains and len(gains) == len(allowed) else None,
        scored=scored,
        allowed=allowed,
        untried=tuple(places[k] - number for k in columns if places[k] >= number),
        fit_failed=failure,
    )


def _left_out(study: StudyRecords, arms: Sequence[Arm]) -> list[TrialSpec]:
    if study.config.strategy != "search":
        return []
    waiting = [arm.trials[0].spec for arm in arms if not arm.has_begun]
    return hopeful(waiting, [arm for arm in arms if arm.has_begun])


def _settings(spec: TrialSpec, arms: Sequence[Arm]) -> Untried:
    """Return an untried arm's kind and axes; trials with the same setting of rows tell how many
    it has."""
    alike = [t for arm in arms for t in arm.trials if t.spec.rows == spec.rows]
    return spec.kind, axes_of(spec, alike)


def hopeful(untried: Sequence[TrialSpec], begun: Sequence[Arm]) -> list[TrialSpec]:
    """Leave out trials at rates as high as one that failed.

    A failed trial has no score, so the posterior learns nothing from it about its neighbors.
    """
    failed: dict[object, float] = {}
    for arm in begun:
        spec = arm.trials[0].spec
        if not arm.finished and any(t.status in FAILED for t in arm.trials):
            rate = axes_of(spec, ())[-1]
            failed[spec.kind] = min(rate, failed.get(spec.kind, inf))
    return [t for t in untried if axes_of(t, ())[-1] < failed.get(t.kind, inf)]


def weighed(
    study: StudyRecords,
    arms: Sequence[Arm],
    measured: Sequence[Measured],
    posteriors: Sequence[Posterior],
) -> tuple[NetGains, tuple[int, ...]]:
    """Weigh the net gains of the arms that have all scores that count.

    A failed trial has gained nothing, and cost is subtracted with the study's weight. An arm that
    was never trained costs as much as the first one.

    Returns:
        The net gains and the arms' places; arms that were never trained follow.
    """
    objective = study.config.objective
    counts = [k for k, m in enumerate(measured) if m.part.weight]
    net, places = net_gains(
        [measured[k] for k in counts], [posteriors[k] for k in counts], objective.margin
    )
    summaries = [arms[i if i < len(arms) else places[0]].summary for i in places]
    untried = sum(i >= len(arms) for i in places)
    shares = _shares_finished(summaries)
    shares[len(places) - untried :] = 1.0
    costs = objective.cost_weight * _costs(summaries)
    return replace(net.changed(shares, costs), num_untried=untried), places


def _changes_by_place(
    measured: Sequence[Measured], posteriors: Sequence[Posterior]
) -> dict[int, dict[str, Array]]:
    """Return the draws of each change, (D,), by the place of its arm and by task."""
    found = defaultdict[int, dict[str, Array]](dict)
    for part, of_part in zip(measured, posteriors, strict=True):
        for column, place in enumerate(part.places):
            found[place][part.part.task] = of_part.draws[:, column]
    return found


def forgotten(
    changes: Mapping[int, Mapping[str, Array]], task: str, study: StudyRecords
) -> dict[int, Array]:
    """Return draws of each arm's mean fall over the retention tasks, by place; for arms with
    all."""
    names = [part.task for part in net_parts(study, task) if part.task != task]
    return {
        place: -np.mean([of_arm[name] for name in names], axis=0)
        for place, of_arm in changes.items()
        if names and set(names) <= of_arm.keys()
    }


def _shares_finished(arms: Sequence[ArmSummary]) -> Array:
    """Return each arm's share of finished trials: a failed trial has gained nothing."""
    counts = [(arm.seeds, arm.failed) for arm in arms]
    return np.array([done / (done + failed) if done else 1.0 for done, failed in counts])


def _costs(arms: Sequence[ArmSummary]) -> Array:
    """Return the arms' costs: the logarithm of the trainable parameters, scaled from 0 to 1.

    The fewest parameters of arms that train cost 0, the most cost 1; a prompt costs 0.
    """
    fewest = min((arm.trainable_parameters for arm in arms if arm.trains), default=0)
    sizes = np.array([log(max(1, fewest, arm.trainable_parameters)) for arm in arms])
    return np.asarray((sizes - sizes.min()) / (np.ptp(sizes) or 1.0))
