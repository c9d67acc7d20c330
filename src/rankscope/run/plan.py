"""The costs of a study, counted or estimated before anything runs.

Trials, groups, steps and tokens are counted, with rows of equal length together
(``data/study_data.py``). Memory is counted on shapes (``train/memory.py``). ``costs.py`` turns
tokens into time at the pace of a machine of ``machines.py``.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from rankscope.analyses.analysis import analyses_of_run
from rankscope.device import dtype_name
from rankscope.errors import UserError
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.formatting import byte_size, compact, count, join_names, rough_duration
from rankscope.records import BASE, Record, TrialSpec
from rankscope.run.costs import CostModel
from rankscope.run.groups import Group, GroupLimit, what_limits
from rankscope.run.machines import Machine, busy_notes, paced_machine
from rankscope.run.prepared import PreparedStudy

FEWEST_ARMS, FEWEST_UPDATES = 3, 40  # For a study that should find an answer
Seconds = dict[str, float]
"""Seconds by stage: ``starting`` a process with the base's weights, ``training``, ``storing``,
``scoring``, and each analysis by its name. ``storing`` writes checkpoints and weights, and reads
weights."""


class _GroupPlan(Record):
    task: str
    labels: tuple[str, ...]  # Its trials
    steps: int
    num_tokens: int  # Training tokens of all its trials together
    parameters: int  # Weights that its trials train, together
    memory_bytes: int
    """Estimated peak while it trains or is scored: base, adapters with their states, and one
    forward and backward pass or scoring. ``library_bytes`` come on top."""
    fits: bool  # Whether it trains in less than ``memory_bytes`` of the plan
    scoring_fits: bool  # Whether it is scored in less
    states_fit: bool
    """Whether base, trained weights, gradients and optimizer states fit, without any pass."""
    limited_by: GroupLimit  # Limit that keeps the group from being larger
    stages: Seconds
    seconds: float  # Sum over all stages


class Plan(Record):
    study: str
    model: str
    machine: str
    memory_bytes: int  # Memory of the machine, or ``memory_limit`` if that is less
    library_bytes: int  # Memory of a process besides what its groups need
    dtype: str
    trials: int
    groups: tuple[_GroupPlan, ...]
    evaluations: int  # Models x tasks x splits
    curve_evaluations: int
    """Trials x tasks x points during training, on at most ``evaluate_items`` items each."""
    train_tokens: int
    evaluation_tokens: int
    disk_bytes: int  # Weights, snapshots, and checkpoints that exist at a time
    stages: Seconds  # Seconds of the whole study on one device
    seconds: float  # Their sum
    gpus: int
    devices: int  # Devices of each group, ``train.devices``
    wall_seconds: float  # On ``gpus`` devices: the base first, then the groups, longest first
    basis: str  # Basis of the estimate of time
    kernels: str  # How norms, rotary embeddings and gates are computed
    expected_tokens: int | None = None
    """Training tokens that a search is expected to need; the rest of the plan is for the grid of
    its lists."""
    expected_seconds: float | None = None  # Expected time of a search on ``gpus`` devices
    budget: str | None = None  # Its limits, such as ``24 trials``
    notes: tuple[str, ...]


def make_plan(
    inputs: PreparedStudy,
    machine: Machine | None = None,
    gpus: int = 1,
    tokens_per_second: float | None = None,
) -> Plan:
    """Plan a study for ``gpus`` devices of a machine, by default this one.

    ``tokens_per_second`` gives the machine's pace.
    """
    busy = () if machine or tokens_per_second else busy_notes()
    machine = paced_machine(inputs, machine, tokens_per_second)
    model, gpus = CostModel(inputs, machine), max(gpus, inputs.config.train.devices)
    costs: dict[str, Seconds] = {}
    scoring: dict[tuple[object, ...], float] = {}
    for group in inputs.groups:
        costs |= _trial_costs(model, group, scoring)
    groups = tuple(_plan_group(model, group, costs) for group in inputs.groups)
    base = _base_cost(model)
    stages, shared = _summed([base, *costs.values()]), sum(base.values())
    at_once = gpus // inputs.config.train.devices
    wall_seconds = shared + _makespan([group.seconds for group in groups], at_once)
    counts = _counts(inputs)
    return Plan(
        study=inputs.config.name,
        model=inputs.config.model.label,
        machine=machine.label,
        memory_bytes=_available_bytes(inputs, machine),
        library_bytes=inputs.grouping.model.library_bytes,
        dtype=dtype_name(inputs.dtype),
        groups=groups,
        disk_bytes=_disk_bytes(model, gpus),
        stages=stages,
        seconds=sum(stages.values()),
        gpus=gpus,
        devices=inputs.config.train.devices,
        wall_seconds=wall_seconds,
        basis=machine.basis,
        kernels=inputs.config.train.kernels,
        notes=(*inputs.notes, *busy),
        **counts,
        **_expected(inputs, shared, wall_seconds, counts["train_tokens"]),
    )


def first_arms(inputs: PreparedStudy, machine: Machine) -> tuple[Seconds, list[Seconds]]:
    """Estimate seconds of the base, and of the fewest first arms of a search that give an
    answer."""
    model, scoring = CostModel(inputs, machine), dict[tuple[object, ...], float]()
    arms = inputs.first[:FEWEST_ARMS]
    costs = [_trial_costs(model, (trial,), scoring)[trial.trial_id] for trial in arms]
    return _base_cost(model), costs


def check_time(inputs: PreparedStudy, machine: Machine | None = None) -> None:
    """Raise UserError if a budget of time is too short for an answer on this machine.

    An answer needs ``FEWEST_ARMS`` arms of ``FEWEST_UPDATES`` updates each.
    """
    budget = inputs.config.budget
    if budget is None or budget.hours is None:
        return
    arms = inputs.first[:FEWEST_ARMS]
    steps, do = min(map(inputs.num_steps, arms)), "or take what comes of it: --anyway"
    if steps < FEWEST_UPDATES:
        found = f"arms of {count(steps, 'update')}"
        raise UserError("train", found, f"{FEWEST_UPDATES} or more", f"train longer, {do}")
    base, of_arms = first_arms(inputs, machine or paced_machine(inputs))
    needed = sum(base.values()) + sum(sum(arm.values()) for arm in of_arms)
    if needed > 3600 * budget.hours:
        rule = f"{rough_duration(needed)} or more, for the base and {count(len(arms), 'arm')}"
        raise UserError("budget", budget.text, rule, f"give that, or a smaller model, {do}")


def _counts(inputs: PreparedStudy) -> dict[str, Any]:
    """Count trials, evaluations and tokens."""
    evaluations, curve = len(inputs.wanted_evals(BASE, None)), 0
    items = _base_items(inputs)
    tokens = sum(item.total for item in items)
    counted: dict[tuple[object, ...], int] = {}
    for trial in inputs.trials:
        evaluations += len(inputs.wanted_evals(trial.trial_id, trial.task))
        evaluations += len(inputs.analysis_evals(trial))
        curve += len(inputs.curve_steps(trial)) * len(inputs.curve_tasks(trial.task))
        kind = _scored_alike(inputs, trial)
        if kind not in counted:
            counted[kind] = sum(item.total for item in _evaluated_items(inputs, trial))
        tokens += counted[kind]
    return {
        "trials": len(inputs.trials),
        "evaluations": evaluations,
        "curve_evaluations": curve,
        "train_tokens": sum(map(inputs.training_tokens, inputs.trials)),
        "evaluation_tokens": tokens,
    }


def _expected(inputs: PreparedStudy, shared: float, wall: float, tokens: int) -> dict[str, Any]:
    """Return the fields of a plan that only a search has.

    They show what its budget pays for, if trials are alike.
    """
    if inputs.config.strategy == "grid":
        return {}
    budget, trains = inputs.search_budget, sum(trial.trains for trial in inputs.trials)
    limit, of_groups = 3600 * (budget.hours or inf), wall - shared
    shares = (budget.trials or inf) / trains, (budget.tokens or inf) / max(1, tokens)
    share = min(1.0, *shares, max(0.0, limit - shared) / max(1e-9, of_groups))
    return {
        "expected_tokens": round(share * tokens),
        "expected_seconds": min(limit, shared + share * of_groups),
        "budget": budget.text,
    }


def _disk_bytes(model: CostModel, gpus: int) -> int:
    """Count the bytes of all stored weights, and of the checkpoints that exist at a time.

    The largest groups that train at a time count twice: the new checkpoint is complete before the
    old one goes.
    """
    inputs = model.inputs
    stored = sum(map(model.stored_bytes, inputs.trials))
    states = [model.checkpoint_bytes(g) for g in inputs.groups if model.num_checkpoints(g)]
    together = max(1, gpus // inputs.config.train.devices)
    return stored + 2 * sum(sorted(states, reverse=True)[:together])


def _available_bytes(inputs: PreparedStudy, machine: Machine) -> int:
    """Return the memory of the machine, or ``memory_limit`` if that is less."""
    has = round(machine.memory * 1e9)
    return min(has, inputs.config.memory_limit or has)


def _plan_group(model: CostModel, group: Group, costs: Mapping[str, Seconds]) -> _GroupPlan:
    inputs, config = model.inputs, model.inputs.config
    memory = inputs.grouping.memory(group, config.train)
    scoring, available = inputs.scoring_bytes(group), _available_bytes(inputs, model.machine)
    stages = _summed([costs[trial.trial_id] for trial in group])
    return _GroupPlan(
        task=group[0].task,
        labels=tuple(f"{trial.arm_label} seed={trial.seed}" for trial in group),
        steps=max(map(inputs.num_steps, group)),
        num_tokens=sum(map(inputs.training_tokens, group)),
        parameters=sum(map(model.parameters, group)),
        memory_bytes=memory.with_pass(max(memory.pass_bytes, scoring)),
        fits=memory.total_bytes <= available,
        scoring_fits=memory.with_pass(scoring) <= available,
        states_fit=memory.base_bytes + memory.state_bytes <= available,
        limited_by=what_limits(group, inputs.groups, config.max_group_size),
        stages=stages,
        seconds=sum(stages.values()),
    )


def _base_cost(model: CostModel) -> Seconds:
    analyses = analyses_of_run(model.inputs.config)
    return {
        "starting": model.start(),
        "training": 0.0,
        "storing": 0.0,
        "scoring": model.scoring(_base_items(model.inputs)),
        **{analysis.name: analysis.base_seconds(model) for analysis in analyses},
    }


def _trial_costs(
    model: CostModel, group: Group, scoring: dict[tuple[object, ...], float]
) -> dict[str, Seconds]:
    """Estimate costs by trial id; ``scoring`` keeps the seconds of trials that are scored alike."""
    inputs, stored = model.inputs, model.storing(group)
    analyses = () if group[0].prompt else analyses_of_run(inputs.config)
    costs = {}
    for trial in group:
        kind = _scored_alike(inputs, trial)
        if kind not in scoring:
            scoring[kind] = model.scoring(_evaluated_items(inputs, trial))
        costs[trial.trial_id] = {
            "training": model.training(trial),
            "storing": stored / len(group),
            "scoring": scoring[kind],
            **{analysis.name: analysis.trial_seconds(model, trial) for analysis in analyses},
        }
    return costs


def _base_items(inputs: PreparedStudy) -> list[ItemTokens]:
    """List the items that the base is scored on."""
    return [
        i for _, task, split in inputs.wanted_evals(BASE, None) for i in inputs.items[task, split]
    ]


def _scored_alike(inputs: PreparedStudy, trial: TrialSpec) -> tuple[object, ...]:
    """Key that is equal for trials that are scored on the same items equally often."""
    is_scored = trial.given is not None and trial.given.scores_of is not None
    num_points, num_others = len(inputs.curve_steps(trial)), len(inputs.analysis_evals(trial))
    return trial.task, num_points, num_others, is_scored, trial.prompt


def _evaluated_items(inputs: PreparedStudy, trial: TrialSpec) -> list[ItemTokens]:
    """List every item that a trial is scored on, during training and after, once for each time."""
    if trial.given is not None and trial.given.scores_of is not None:
        return []
    few, items = inputs.config.train.evaluate_items, inputs.items_of(trial)
    after = inputs.wanted_evals(trial.trial_id, trial.task) + inputs.analysis_evals(trial)
    point = [i for task in inputs.curve_tasks(trial.task) for i in items[task, "validation"][:few]]
    return point * len(inputs.curve_steps(trial)) + [
        item for _, task, split in after for item in items[task, split]
    ]


def _summed(costs: Iterable[Seconds]) -> Seconds:
    totals: Seconds = {}
    for cost in costs:
        for stage, seconds in cost.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    return totals


def _makespan(seconds: Sequence[float], devices: int) -> float:
    """Return when the last device is done, if each unit, longest first, goes to the first free one.

    >>> _makespan([3, 3, 2, 2, 2], 2)
    7
    """
    busy = [0.0] * devices
    for unit in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + unit)
    return max(busy)


def plan_sentences(plan: Plan) -> Iterator[str]:
    """Write what a plan takes in all, and which groups do not fit."""
    curve = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    yield (
        f"{count(plan.trials, 'trial')} in {count(len(plan.groups), 'group')}, "
        f"{plan.evaluations:,} evaluations{curve}: {plan.train_tokens:,} tokens to train on, "
        f"{plan.evaluation_tokens:,} to score, "
        f"up to {compact(max(group.parameters for group in plan.groups))} weights to train at once."
    )
    total = f"About {rough_duration(plan.seconds)} on "
    total += "one device" if plan.devices == 1 else f"{plan.devices} devices"
    if plan.gpus > plan.devices:
        total += f", {rough_duration(plan.wall_seconds)} on {plan.gpus}, longest groups first"
    yield f"{total}; {byte_size(plan.disk_bytes)} on disk."
    if plan.expected_tokens is not None and plan.expected_seconds is not None:
        devices = f" on {plan.gpus} devices" if plan.gpus > 1 else ""
        yield (
            f"The search spends at most {plan.budget}, on these and on arms beyond the ends of the "
            f"lists: about {plan.expected_tokens:,} tokens "
            f"({plan.expected_tokens / plan.train_tokens:.0%}) and "
            f"{rough_duration(plan.expected_seconds)}{devices}."
        )
    stages = [f"{stage} {rough_duration(time)}" for stage, time in plan.stages.items() if time]
    yield f"By stage: {', '.join(stages)}."
    yield f"Time is estimated {plan.basis}; train.kernels: {plan.kernels}."
    most = max(group.memory_bytes for group in plan.groups)
    yield (
        f"Memory: up to {byte_size(most)} of {byte_size(plan.memory_bytes)}, in training or "
        f"scoring; the libraries' own {byte_size(plan.library_bytes)} come on top."
    )
    unfit: dict[str, list[str]] = {}
    for number, group in enumerate(plan.groups, 1):
        fits = (group.states_fit, group.fits, group.scoring_fits)
        if not all(fits):
            unfit.setdefault(_FAULTS[fits.index(False)], []).append(str(number))
    for fault in _FAULTS:
        if fault in unfit:
            yield f"DOES NOT FIT: {fault.format(join_names(unfit[fault]))}"


_FAULTS = (
    "the base and the optimizer states of group {} alone exceed that. Raise train.devices, leave "
    "the arm out, or take a larger machine.",
    "group {} needs more memory than that. Lower train.batch_tokens, set "
    "train.gradient_checkpointing=true, or leave the arm out.",
    "scoring group {} needs more memory than that. Lower evaluate.batch_tokens.",
)
