"""Adaptive studies: which trials stop at a rung, and which is trained next, by the posterior.

The first seed of every arm is trained from rung to rung. A score at a rung is an observation of
where the arm is heading: it goes on as it has risen, in part, and how far off that is, is drawn
with it. A trial stops if its arm is hardly the best rate of its configuration, and after the last
rung if it is hardly within the margin of the best arm of all. Then the trial that is worth most per
token is trained, again and again, until the answer is as sure as was asked for, or no trial is
worth it. Every function here is a function of records.

What the numbers below cost and miss: docs/findings, adaptive studies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.decide import MAY_DO, Answer, decide
from rankscope.advise.evidence import Measured, measure
from rankscope.advise.net_gains import draw_changes
from rankscope.advise.posterior import Array, broken_arms
from rankscope.advise.results import (
    TaskResults,
    changes_by_place,
    expected,
    forgotten,
    task_results,
    weighed,
)
from rankscope.advise.retention import net_parts
from rankscope.advise.value import values_of_trials
from rankscope.records import (
    SURE,
    StopRecord,
    StudyRecords,
    TrialSpec,
    finished_trials,
)

HEADING = 0.4  # Share of its last rise that an arm is expected to rise again before its end
DOUBT = 0.3  # Standard deviation of that, in root mean squares of the arms' last rises
FEWEST_BEST = 0.2  # A rate goes on if it is the best of its configuration with this probability
FEWEST_WITHIN = 0.1  # An arm goes on after the last rung if it is within the margin with this one
WORTH = 0.02  # Least expected fall of the regret for which a trial is trained, in margins
TOO_FAR = 1e3  # Net gain taken off an arm that cannot be chosen
RUNGS = (0.2, 0.5)  # Shares of a trial's own steps, ascending, unless the study file names others
MOST_AT_ONCE = 3  # Trials of one round: adapters that train together share the base's work


def stops_at_rung(
    study: StudyRecords,
    task: str,
    num_steps: Callable[[TrialSpec], int],
    before: StudyRecords | None = None,
    *,
    is_last: bool,
) -> dict[str, StopRecord]:
    """Trials of a task that stop at a rung, by trial id.

    The arm of the highest expected net gain never stops, nor does the best LoRA arm, among arms of
    as many training rows each: that more rows gain more says nothing of ranks.

    Args:
        study: the study as if training had ended at the rung: its trials that reached it are
            ``done`` with one seed each and have the validation items scored there.
        num_steps: optimizer steps of a trial's whole training.
        before: the same at the rung before; None at the first.
        is_last: the last rung, at which ranks and methods compete as well.
    """
    arms = [arm for arm in _arms(study, task) if arm.finished]
    trials, parts = [arm.trials for arm in arms], net_parts(study, task)
    found = [m for part in parts if (m := measure(study, part, trials)) is not None]
    if not {part.task for part in parts if part.weight} <= {m.part.task for m in found}:
        return {}
    margin = study.config.objective.margin
    heading = [_heading(m, before, task, arms) for m in found]
    posteriors, _ = draw_changes(heading)
    net, places = weighed(study, arms, heading, posteriors)
    measured = np.zeros(len(places))
    for m in [m for m in found if m.part.weight]:
        measured += m.part.weight * m.changes.means[[m.places.index(i) for i in places]]
    scored, draws = [arms[i] for i in places], net.draws
    over, limit = np.zeros(len(arms)), study.config.objective.max_forgetting
    if limit is not None:
        for place, lost in forgotten(changes_by_place(heading, posteriors), task, study).items():
            over[place] = float((lost > limit).mean()) > 0.5
    # An arm that is over the limit on forgetting stops no other.
    ranked = draws - TOO_FAR * over[list(places)]
    stops: dict[str, StopRecord] = {}
    for i, against, p in _stopping(scored, ranked, margin, is_last):
        gap = draws[:, i] - draws[:, against]
        low, high = np.quantile(gap, (0.025, 0.975)).tolist()
        trial = finished_trials(scored[i].trials)[0]
        assert trial.train is not None
        stops[trial.spec.trial_id] = StopRecord(
            trial_id=trial.spec.trial_id,
            num_steps=num_steps(trial.spec),
            rival=scored[against].summary.label,
            p=p,
            difference=float(measured[i] - measured[against]),
            heading=float(gap.mean()),
            low=low,
            high=high,
            train=trial.train,
        )
    return stops


def _stopping(
    arms: Sequence[Arm], draws: Array, margin: float, is_last: bool
) -> Iterator[tuple[int, int, float]]:
    """Places of the arms that stop and of those that they lose against, with the probability for
    which they stop."""
    order = np.argsort(-draws.mean(axis=0), kind="stable").tolist()
    of_rows: dict[int | None, list[int]] = {}  # By number of training rows, the best first
    for i in order:
        of_rows.setdefault(arms[i].trials[0].spec.rows, []).append(i)
    for columns in _configurations(arms):
        rivals = of_rows[arms[columns[0]].trials[0].spec.rows]
        best_lora = next((i for i in rivals if arms[i].summary.is_lora), rivals[0])
        top = np.maximum(draws[:, rivals].max(axis=1), 0.0)
        best = draws[:, columns].argmax(axis=1)
        leader = min(columns, key=order.index)
        for place, i in enumerate(columns):
            p, against = float((best == place).mean()), leader
            goes_on = i == leader or p >= FEWEST_BEST
            if is_last and goes_on:
                p, against = float((draws[:, i] >= top - margin).mean()), rivals[0]
                goes_on = p >= FEWEST_WITHIN
            if not goes_on and i not in (rivals[0], best_lora):
                yield i, against, p


def _heading(
    measured: Measured, before: StudyRecords | None, task: str, arms: Sequence[Arm]
) -> Measured:
    """Changes that a task's arms head for, with the doubt of it; at the start of training an arm
    is the base."""
    changes, earlier = measured.changes, np.zeros(len(measured.places))
    if before is not None:
        known = {arm.summary.label: arm.trials for arm in _arms(before, task)}
        trials = [known.get(arm.summary.label, ()) for arm in arms]
        if (found := measure(before, measured.part, trials)) is not None:
            known_means = dict(zip(found.places, found.changes.means.tolist(), strict=True))
            earlier = np.array([known_means.get(place, 0.0) for place in measured.places])
    rises = changes.means - earlier
    usual = rises[~broken_arms(changes.means)]
    doubt = DOUBT**2 * float(np.square(usual).mean()) if len(usual) else 0.0
    means, extra = changes.means + HEADING * rises, np.full(len(rises), doubt)
    return replace(measured, changes=replace(changes, means=means, extra=extra))


def _configurations(arms: Sequence[Arm]) -> list[list[int]]:
    """Places of the arms that differ in the rate alone."""
    places: dict[object, list[int]] = {}
    for i, arm in enumerate(arms):
        places.setdefault(arm.trials[0].spec.arm_without_lr, []).append(i)
    return list(places.values())


def next_trials(
    study: StudyRecords,
    task: str,
    until: float | None = None,
    cost: Mapping[str, float] | None = None,
) -> list[TrialSpec]:
    """The trials that are worth most per token, most first; empty if the answer is sure enough.

    Call it again when these trials have ended.

    Args:
        study: its trials with their statuses; those that never began are ``planned``.
        until: probability of being within the margin of the best until which seeds are trained.
            None: until ``SURE``, or until no further seed is worth it.
        cost: tokens by trial id; equal by default.
    """
    results, answer = _answered(study, task)
    p, is_fit = answer.p_within_margin, results.fit_failed is None
    if results.net is None or not results.allowed or p is None or not is_fit:
        return []
    if p >= (until or SURE):
        return []
    values = values_of_trials(results.net).tolist()
    waiting: dict[object, TrialSpec] = {}
    for trial in study.trials:
        if trial.status == "planned":
            waiting.setdefault(trial.spec.arm, trial.spec)
    worth: list[tuple[float, float, TrialSpec]] = []
    for place, value in zip(results.allowed, values, strict=True):
        arm, of = results.arms[place], expected(results.arms[place].summary)
        spec = waiting.get(arm.trials[0].spec.arm)
        # Who asks for a probability pays for seeds that are hardly worth it, of arms that may do.
        is_worth = value >= WORTH * results.margin or (until and of.p_within_margin >= MAY_DO)
        if spec is not None and is_worth:
            worth.append((value / (cost or {}).get(spec.trial_id, 1.0), of.p_best, spec))
    worth.sort(key=lambda found: found[:2], reverse=True)
    return [spec for value, _, spec in worth[:MOST_AT_ONCE] if value >= worth[0][0] / 2]


def finalists(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    """The arms that the answer names, most important first: those to score on the test split.

    The recommended arm, the best one, the best of LoRA and of full fine-tuning, and the smaller
    ranks that may do.
    """
    results, answer = _answered(study, task)
    by_label = {arm.summary.label: arm for arm in results.arms}
    smaller = [by_label[rank.label] for rank in answer.ranks]
    named = (answer.subject, *results.candidates[:1], results.best_lora, results.best_full)
    kept = {a.summary.label: a for a in (*named, *smaller) if a is not None and a.finished}
    return tuple(kept.values())


def _answered(study: StudyRecords, task: str) -> tuple[TaskResults, Answer]:
    results = task_results(study, task, _arms(study, task))
    return results, decide(results)


def _arms(study: StudyRecords, task: str) -> tuple[Arm, ...]:
    """The arms of a task that have begun."""
    of_task = [t for t in study.trials if t.spec.task == task]
    begun = {t.spec.arm for t in of_task if t.status not in ("planned", "skipped")}
    kept = tuple(t for t in of_task if t.spec.arm in begun)
    return summarize_arms(replace(study, trials=kept)).get(task, ())
