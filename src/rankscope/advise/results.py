"""Everything that the advice on one training task is drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import log
from sys import maxsize

import numpy as np

from rankscope.advise.arms import FEWEST_LOSSES, Arm
from rankscope.advise.evidence import measure
from rankscope.advise.posterior import Array, NetGains, Posterior, flat_posterior, posterior
from rankscope.advise.retention import (
    NetScale,
    above_chance,
    all_base_scores,
    forgetting_parts,
    net_scale,
    retention_tasks,
)
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import POINTS, Unit, net_unit, unit_of
from rankscope.records import (
    BASE,
    FAILED,
    OVER_BUDGET,
    ArmComparison,
    ArmSummary,
    ExpectedGain,
    StudyRecords,
    TaskRecord,
    TrialRecords,
)

FEWEST_STEPS = 20  # With fewer optimizer steps and a loss that still falls, arms cannot be compared


@dataclass(frozen=True)
class TaskResults:
    """The arms of one training task, the posterior of their net gains, and what numbers mean."""

    study: StudyRecords
    task: str
    arms: tuple[Arm, ...]  # With what the posterior says of each
    scale: NetScale
    evidence: NetGains | None  # Of ``allowed``, as they are compared; None if no arm was scored
    posterior: Posterior | None  # Of ``allowed``
    scored: tuple[int, ...] = ()  # Places in ``arms``
    allowed: tuple[int, ...] = ()  # Of those that probably keep the limit on forgetting
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
        """Unit of forgetting; points if nothing measures it."""
        tasks = retention_tasks(self.study, self.task)
        return unit_of(tasks[0].score_unit) if tasks else POINTS

    @property
    def net_unit(self) -> Unit:
        return net_unit(self.scale.name, self.unit)

    @property
    def margin(self) -> float:
        """The difference of net gains that counts as small, on their scale."""
        return self.objective.margin_on(self.scale.name)

    @property
    def net_name(self) -> str:
        """What arms are compared by; the gain alone if forgetting has no weight."""
        is_gain = [part.task for part in self.scale.parts] == [self.task]
        return "gain" if is_gain else "net gain"

    @property
    def trials(self) -> tuple[TrialRecords, ...]:
        return tuple(t for arm in self.arms for t in arm.trials)

    @property
    def failed(self) -> tuple[TrialRecords, ...]:
        return tuple(t for t in self.trials if t.status in FAILED)

    @property
    def over_budget(self) -> tuple[TrialRecords, ...]:
        """Trials of an adaptive study that the answer asked for, and the budget did not pay for."""
        return tuple(t for t in self.trials if t.status == "skipped" and t.failure == OVER_BUDGET)

    @property
    def waiting(self) -> int:
        return sum(t.status in ("planned", "trained") for t in self.trials)

    @cached_property
    def candidates(self) -> tuple[Arm, ...]:
        """Every configuration at its rate of the highest expected net gain; highest first. One that
        was trained to its end stands before one that was not and is less than the margin ahead."""

        def net(arm: Arm) -> float:
            return expected(arm.summary).net

        def preferred(arm: Arm) -> float:
            return net(arm) + self.margin * bool(arm.finished)

        first: dict[object, Arm] = {}
        for arm in sorted((self.arms[i] for i in self.allowed), key=preferred, reverse=True):
            first.setdefault(arm.trials[0].spec.arm_without_lr, arm)
        return tuple(sorted(first.values(), key=net, reverse=True))

    @property
    def best_full(self) -> Arm | None:
        return next((a for a in self.candidates if a.summary.is_full and a.finished), None)

    @property
    def best_lora(self) -> Arm | None:
        return next((a for a in self.candidates if a.summary.is_lora and a.finished), None)

    @property
    def best_prompt(self) -> Arm | None:
        return next((a for a in self.candidates if not a.summary.trains and a.finished), None)

    @cached_property
    def comparisons(self) -> tuple[ArmComparison, ...]:
        return tuple(_compared(self))

    @property
    def over_limit(self) -> tuple[Arm, ...]:
        """Arms that probably forget more than the study allows."""
        return tuple(self.arms[i] for i in self.scored if i not in self.allowed)

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """Learning rates tried for the arm's other settings, ascending."""
        settings = arm.trials[0].spec.arm_without_lr
        alike = [a for a in self.arms if a.trials[0].spec.arm_without_lr == settings]
        return tuple(sorted({a.summary.lr for a in alike}))

    def is_barely_trained(self, arm: Arm) -> bool:
        """Too few steps for a loss trend, or few steps and a loss that still falls."""
        if arm.steps < FEWEST_LOSSES:
            return arm.steps > 0
        trend = arm.loss_trend
        return arm.steps < FEWEST_STEPS and trend is not None and trend.is_falling

    @property
    def hidden_size_rank(self) -> int:
        """Upper bound of the useful ranks: one side of every target is the hidden size, or less."""
        return self.study.model.hidden_size or maxsize  # imported scores do not tell it

    @property
    def retention_at_chance(self) -> dict[str, tuple[float, int, float]]:
        """Retention tasks on which the base is not shown to be above chance: its score, the number
        of items, and the score of guessing."""
        found = {}
        for task in retention_tasks(self.study, self.task):
            scores = all_base_scores(self.study, task.name)
            is_scored = task.score_unit == "accuracy" and scores.size > 1
            if is_scored and above_chance(self.study, task) is None:
                found[task.name] = (float(scores.mean()), scores.size, task.chance or 0.0)
        return found

    def base_score(self, task: str) -> float | None:
        record = self.study.evals.get((BASE, task, "test"))
        return None if record is None else record.score


def _compared(results: TaskResults) -> Iterator[ArmComparison]:
    """Each LoRA candidate against full fine-tuning, each rank against the next smaller one, and the
    largest against the smallest."""
    posterior = results.posterior
    if posterior is None:
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
        one, other = (posterior.draws[:, columns[a.summary.label]] for a in (first, second))
        more = one - other
        low, high = np.quantile(more, (0.025, 0.975)).tolist()
        yield ArmComparison(
            kind="full" if kind == "full" else "ranks",
            first_label=first.summary.label,
            second_label=second.summary.label,
            net=float(more.mean()),
            low=low,
            high=high,
            p_better=float((more > 0).mean()),
            p_within_margin=float((more >= -posterior.margin).mean()),
        )


def expected(arm: ArmSummary) -> ExpectedGain:
    """Of an arm that was scored."""
    assert arm.expected is not None
    return arm.expected


def task_results(study: StudyRecords, task: str, arms: Sequence[Arm]) -> TaskResults:
    """Draw the posterior of the net gains of a training task's arms."""
    trials = [arm.trials for arm in arms]
    objective, scale = study.config.objective, net_scale(study, task, trials)
    found = measure(study, scale.parts, trials)
    if found is None:
        return TaskResults(study, task, tuple(arms), scale, None, None)
    measured, scored = found
    margin = objective.margin_on(scale.name)
    net, failure = drawn_posterior(measured, margin)
    summaries = [arms[i].summary for i in scored]
    shares, costs = _shares_finished(summaries), objective.cost_weight * _costs(summaries)
    draws = net.draws * shares - costs
    forgetting = forgetting_draws(study, task, trials)
    limit = objective.max_forgetting
    over = {i: float((d > limit).mean()) for i, d in forgetting.items() if limit is not None}
    columns = np.array([k for k, i in enumerate(scored) if over.get(i, 0.0) <= 0.5], dtype=np.intp)
    kept = Posterior(draws[:, columns], margin)
    # A place is one in ``arms``, a column one in ``scored``; the posterior has ``columns`` alone.
    judged, place_of = list(arms), {int(column): k for k, column in enumerate(columns)}
    for column, place in enumerate(scored):
        judged[place] = arms[place].updated(
            expected=_expected(
                kept,
                place_of.get(column),
                draws[:, column],
                forgetting.get(place),
                over.get(place),
            )
        )
    evidence = replace(measured, means=measured.means * shares - costs)
    return TaskResults(
        study=study,
        task=task,
        arms=tuple(judged),
        scale=scale,
        evidence=evidence.part(columns),
        posterior=kept,
        scored=scored,
        allowed=tuple(scored[k] for k in columns),
        fit_failed=failure,
    )


def drawn_posterior(evidence: NetGains, margin: float) -> tuple[Posterior, str | None]:
    """The posterior; with the flat prior, and why, if it cannot be computed."""
    try:
        return posterior(evidence, margin), None
    except (FloatingPointError, np.linalg.LinAlgError) as error:
        return flat_posterior(evidence, margin), str(error)


def forgetting_draws(
    study: StudyRecords, task: str, trials: Sequence[Sequence[TrialRecords]]
) -> dict[int, Array]:
    """Place of an arm -> draws of its forgetting, in the retention tasks' own unit."""
    parts = forgetting_parts(study, task)
    found = measure(study, parts, trials) if parts else None
    if found is None:
        return {}
    evidence, places = found
    # As net gains, so that the prior expects some forgetting.
    lost = replace(evidence, means=-evidence.means)
    draws = -drawn_posterior(lost, study.config.objective.margin_on("points"))[0].draws
    return {place: draws[:, column] for column, place in enumerate(places)}


def _expected(
    posterior: Posterior,
    place: int | None,
    net: Array,
    forgetting: Array | None,
    over: float | None,
) -> ExpectedGain:
    """Of one arm, which has a place in the posterior unless it is over the limit."""
    ends = [0.025, 0.975]
    low, high = np.quantile(net, ends).tolist()
    lost: list[float | None] = [None] * 3
    if forgetting is not None:
        lost = [float(forgetting.mean()), *np.quantile(forgetting, ends).tolist()]
    return ExpectedGain(
        net=float(net.mean()),
        low=low,
        high=high,
        p_better=float((net > 0).mean()),
        p_within_margin=0.0 if place is None else float(posterior.p_within_margin[place + 1]),
        p_best=0.0 if place is None else float(posterior.p_best[place + 1]),
        regret=float((posterior.best - net).mean()),
        forgetting=lost[0],
        forgetting_low=lost[1],
        forgetting_high=lost[2],
        p_over_limit=over,
    )


def _shares_finished(arms: Sequence[ArmSummary]) -> Array:
    """A trial that failed has gained nothing."""
    counts = [(arm.seeds, arm.failed) for arm in arms]
    return np.array([done / (done + failed) if done else 1.0 for done, failed in counts])


def _costs(arms: Sequence[ArmSummary]) -> Array:
    """The logarithm of the trainable parameters, from 0 for the fewest to 1 for the most of the
    arms that train; a prompt costs 0."""
    fewest = min((arm.trainable_parameters for arm in arms if arm.trains), default=0)
    sizes = np.array([log(max(1, fewest, arm.trainable_parameters)) for arm in arms])
    return np.asarray((sizes - sizes.min()) / (np.ptp(sizes) or 1.0))
