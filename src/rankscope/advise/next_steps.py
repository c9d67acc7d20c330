"""Commands that would make an answer surer: one direction, the most useful one first."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from math import ceil
from typing import Any

import numpy as np

from rankscope.advise.arms import Arm
from rankscope.advise.checks import FEWEST_UPDATES, RIVAL
from rankscope.advise.decide import Answer
from rankscope.advise.evidence import axes_of
from rankscope.advise.results import TaskResults, expected, task_results
from rankscope.advise.value import value_of_items, values_of_trials
from rankscope.formatting import amount, count, join_names
from rankscope.records import NextStep, TrialRecords, TrialSpec, TrustCheck, finished_trials

FACTOR = 2.0  # To the next learning rate or rank beyond the end of a list
MOST_SUGGESTED = 3
WORTH_NAMING = 0.05  # Least fall of the regret that is named, in margins
RUN_AGAIN = "rankscope run study.yaml"


def next_steps(
    results: TaskResults, answer: Answer, checks: Sequence[TrustCheck]
) -> tuple[NextStep, ...]:
    """Return the commands that settle open checks, then further ones up to three; none twice.

    A step without which nothing can be decided comes alone. Otherwise open checks come first,
    because no probability accounts for them. Then come runs that lower the expected regret most per
    second.
    """
    required = [*_required(results, answer, checks)]
    is_bad = any(check.status == "bad" for check in checks)
    if required or is_bad or answer.regret is None or answer.subject is None:
        return tuple(required[:MOST_SUGGESTED])
    steps = [*_open_ends(results, answer.subject, checks)]
    # As in ``TaskResults.fit_failed``: no trial has a price then.
    with suppress(FloatingPointError, np.linalg.LinAlgError):
        steps += _priced(results)
    by_key = dict[str, NextStep]()  # A step that extends a list in two ways is said once
    for key, step in steps:
        by_key.setdefault(key, step)
    return tuple(s for k, s in enumerate(by_key.values()) if s.check or k < MOST_SUGGESTED)


_Step = tuple[str, NextStep]
"""A key of the study file, and the command that sets it."""


def _set(key: str, value: object, text: str, **more: Any) -> _Step:
    return key, NextStep(text=text, command=f"{RUN_AGAIN} --set {key}={value}", **more)


def _required(
    results: TaskResults, answer: Answer, checks: Sequence[TrustCheck]
) -> Iterator[NextStep]:
    if results.waiting:
        text = f"Train the remaining {count(results.waiting, 'run')}"
        yield NextStep(text=text, command=RUN_AGAIN, check="trials")
    if over_budget := len(results.over_budget):
        begun = sum(t.status != "skipped" and t.spec.trains for t in results.study.trials)
        text = f"Raise the budget for {count(over_budget, 'run')} that the answer asks for"
        command = f"{RUN_AGAIN} --set budget='{2 * begun} trials'"
        yield NextStep(text=text, command=command, check="trials")
    if not finished_trials(results.trials):
        yield from _after_failures(results)
    is_short = any(check.name == "loss" and check.status == "bad" for check in checks)
    if is_short and answer.subject is not None:
        train, steps = results.study.config.train, answer.subject.steps
        factor = ceil(FEWEST_UPDATES / max(1, steps * (1 - train.warmup_fraction)))
        key = "max_steps" if train.max_steps else "epochs"
        number = factor * (train.max_steps or train.epochs)
        _, step = _set(f"train.{key}", f"{number:g}", "Train longer", check="loss")
        yield step.model_copy(update={"seconds": factor * _seconds(results.arms) or None})


def _open_ends(results: TaskResults, subject: Arm, checks: Sequence[TrustCheck]) -> Iterator[_Step]:
    """Yield extensions of the lists at whose ends the arm, or a rival, lies."""
    spec, open_names = subject.trials[0].spec, {c.name for c in checks if c.status == "weak"}
    rivals = [arm for arm in results.candidates if expected(arm.summary).p_within_margin >= RIVAL]
    beyond = dict[int, set[float]]()
    for arm in (subject, *rivals) if "learning_rate" in open_names else ():
        lr, tried = arm.summary.lr, results.rates_of(arm)
        place = _entry(results, arm.trials[0].spec)
        ends = {lr * FACTOR: lr == tried[-1], lr / FACTOR: lr == tried[0]}
        if lr and place is not None:
            beyond.setdefault(place, set()).update(rate for rate in ends if ends[rate])
    for place, more in beyond.items():
        if more:
            named = [m for m in results.study.config.arms[place].method if isinstance(m, str)]
            rates = join_names(f"{rate:.3g}" for rate in sorted(more))
            text = f"Try {join_names(named)} at {rates}"
            yield _extended(results, place, "lr", more, text, check="learning_rate")
    if "ranks" in open_names and spec.rank and (place := _entry(results, spec)) is not None:
        yield _extended(results, place, "rank", {2 * spec.rank}, "Try a larger rank", check="ranks")
    train, seeds = results.study.config.train, results.study.config.seeds
    if "loss" in open_names and not train.tokens:
        key = "max_steps" if train.max_steps else "epochs"
        longer, seconds = 2 * (train.max_steps or train.epochs), 2 * _seconds(results.arms)
        yield _set(f"train.{key}", f"{longer:g}", "Train longer", check="loss", seconds=seconds)
    if "seeds" in open_names and len(seeds) == 1:
        both, seconds = f"[{seeds[0]},{seeds[0] + 1}]", _seconds(results.arms)
        yield _set("seeds", both, "Train a second seed", check="seeds", seconds=seconds)
    if failed := sorted({trial.status for trial in results.failed}):
        command = f"{RUN_AGAIN} --retry {','.join(failed)}"
        yield "retry", NextStep(text="Train the failed runs again", command=command, check="trials")


def _seconds(arms: Iterable[Arm]) -> float:
    """Return how long the seeds of the arms trained."""
    return sum((arm.summary.seconds or 0.0) * arm.summary.seeds for arm in arms)


def _entry(results: TaskResults, spec: TrialSpec) -> int | None:
    """Return the place of the trial's entry under ``arms``; None for an arm of a file."""
    for place, arm in enumerate(results.study.config.arms):
        if spec.method in arm.method and (spec.rank is None or spec.rank in (arm.rank or ())):
            return place
    return None


def _extended(
    results: TaskResults, place: int, key: str, more: set[float], text: str, **others: Any
) -> _Step:
    """Return a command that adds values to a list, with the time of all trials that it adds."""
    alike = [arm for arm in results.arms if _entry(results, arm.trials[0].spec) == place]
    written = {float(v) for v in getattr(results.study.config.arms[place], key) or ()}
    seconds = _seconds(alike) * len(more - written) / max(1, len(written))
    values = ",".join(f"{value:.3g}" for value in sorted(written | more))
    return _set(f"arms.{place}.{key}", f"[{values}]", text, seconds=seconds, **others)


def _priced(results: TaskResults) -> list[_Step]:
    """List runs that lower the expected regret, most per second first."""
    net, margin, unit = results.net, results.margin, results.net_unit
    if net is None:
        return []
    regret = float(net.regret.min())

    def after(value: float) -> str:
        return f"expected regret {amount(regret, unit)} to {amount(max(0.0, regret - value), unit)}"

    arms = [results.arms[i] for i in results.allowed]
    trained = [arm for arm in arms if arm.summary.trains]
    found = list[tuple[float, float, _Step]]()  # With value and seconds
    seeds, values = results.study.config.seeds, values_of_trials(net)
    seconds = sum(arm.summary.seconds or 0.0 for arm in trained)
    more = ",".join(map(str, [*seeds, max(seeds) + 1]))
    step = _set("seeds", f"[{more}]", "Train a further seed", seconds=seconds)
    found.append((float(values.max(initial=0.0)), seconds, step))
    untried = _untried(results, arms)
    for (spec, key), value in zip(untried, _untried_values(results, untried), strict=True):
        took = next((a.summary.seconds for a in trained if a.summary.rank == spec.rank), None)
        of = f"{'r=' + str(spec.rank) if spec.rank else spec.method} at {spec.lr:.2g}"
        setting = spec.lr if key == "lr" else float(spec.rank or 0)
        if (place := _entry(results, spec)) is not None:
            step = _extended(results, place, key, {setting}, f"Try {of}")
            found.append((value, took or seconds, step))
    if items := results.study.config.evaluate.max_items:
        step = _set("evaluate.max_items", 2 * items, "Score more items")
        found.append((value_of_items(net), seconds, step))
    worth = [of for of in found if of[0] >= WORTH_NAMING * margin]
    worth.sort(key=lambda of: -of[0] / (of[1] or 1.0))
    return [
        (
            key,
            step.model_copy(
                update={"text": f"{step.text} ({after(value)})", "seconds": step.seconds or took}
            ),
        )
        for value, took, (key, step) in worth
    ]


def _untried_values(results: TaskResults, untried: Sequence[tuple[TrialSpec, str]]) -> list[float]:
    if not untried:
        return []
    found = task_results(results.study, results.task, results.arms, [of for of, _ in untried])
    assert found.net is not None
    values = values_of_trials(found.net)[found.net.num_tried :].tolist()
    of_place = dict(zip(found.untried, values, strict=True))
    return [of_place.get(place, 0.0) for place in range(len(untried))]


def _untried(results: TaskResults, arms: Sequence[Arm]) -> list[tuple[TrialSpec, str]]:
    """List ranks and rates beside those of the two best configurations, with the list to extend."""
    tried = {
        (spec.arm_without_rank, spec.rank, round(axes_of(spec, arm.trials)[-1], 2))
        for arm in arms
        if (spec := arm.trials[0].spec).lr
    }
    found = list[tuple[TrialSpec, str]]()
    for arm in results.candidates[:2]:
        spec = arm.trials[0].spec
        changes = [{"lr": spec.lr * f} for f in (FACTOR, 1 / FACTOR)] if spec.lr else []
        if spec.rank and spec.alpha:
            changes += [
                {"rank": rank, "alpha": spec.alpha * rank / spec.rank}
                for rank in (spec.rank // 2, spec.rank * 2)
                if 1 <= rank <= results.hidden_size_rank
            ]
        for change in changes:
            beside = spec.model_copy(update=change)
            axes = axes_of(beside, arm.trials)
            if (spec.arm_without_rank, beside.rank, round(axes[-1], 2)) not in tried:
                key = "lr" if "lr" in change else "rank"
                found.append((beside, key))
    return found


def _after_failures(results: TaskResults) -> Iterator[NextStep]:
    diverged, oom, failed = (
        [t for t in results.failed if t.status == status]
        for status in ("diverged", "oom", "failed")
    )
    if diverged:
        lr = min(t.spec.lr for t in diverged) / 10
        trials = count(len(diverged), "run")
        yield NextStep(text=f"{trials} diverged: try a learning rate of {lr:.3g} or less")
    if oom:
        settings, trials = _less_memory(results, oom), count(len(oom), "run")
        text = f"{trials} ran out of memory: try {settings}"
        yield NextStep(text=text, command=f"{RUN_AGAIN} --retry oom")
    if failed:
        first = failed[0]
        why = (first.failure or "no reason recorded").rstrip(".")
        text = f"{count(len(failed), 'run')} ended in an error, first {first.spec.arm_label} "
        text += f"seed={first.spec.seed} ({why}): fix its cause"
        yield NextStep(text=text, command=f"{RUN_AGAIN} --retry failed")


def _less_memory(results: TaskResults, oom: Sequence[TrialRecords]) -> str:
    """Name settings that need less memory. Smaller batches and groups were tried automatically."""
    train = results.study.config.train
    untrained = [t.spec for t in oom if t.train is None]
    steps = []
    if untrained:
        if not train.gradient_checkpointing:
            steps.append("train.gradient_checkpointing: true")
        if any(spec.is_full for spec in untrained) and train.optimizer != "adamw8bit":
            steps.append("train.optimizer: adamw8bit for full fine-tuning on CUDA")
        steps.append("a shorter train.max_length")
        if any(spec.rank is not None for spec in untrained):
            steps.append("a smaller rank")
    if len(untrained) < len(oom):  # these were trained, but not scored
        steps.append("a smaller evaluate.batch_tokens")
    return ", ".join(steps[:-1]) + (" or " if steps[:-1] else "") + steps[-1]
