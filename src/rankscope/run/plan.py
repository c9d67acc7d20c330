"""What a study will cost, counted or estimated before anything runs.

Trials, groups, steps and tokens are counted, rows of equal length together
(``data/stand_ins.py``); memory is counted on shapes (``train/memory.py``); ``costs.py`` turns
tokens into time on one of the machines of ``machines.py``.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from rankscope.analyses import enabled_analyses
from rankscope.device import dtype_name, keep_freed_memory, limit_kernel_cache
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.models.parameters import FLOAT32_BYTES
from rankscope.records import Record, TrialSpec
from rankscope.run.adaptive import expected_shares
from rankscope.run.costs import ENDING_SECONDS, IMPORT_SECONDS, CostModel, StageSeconds
from rankscope.run.groups import Group, GroupLimit, what_limits
from rankscope.run.machines import Machine, this_machine
from rankscope.run.pace import measured_pace
from rankscope.run.prepared import PreparedStudy
from rankscope.run.savings import Saving, largest_savings
from rankscope.run.starter import CAN_FORK


class _ScoringCost(NamedTuple):
    tokens: int
    seconds: float


class _GroupPlan(Record):
    task: str
    labels: tuple[str, ...]  # Its trials
    steps: int
    num_tokens: int  # Training tokens of all its trials together
    memory_bytes: int
    """Peak while it trains or is scored, estimated: base, adapters with their states, and one
    forward and backward pass or what scoring takes. ``library_bytes`` come on top."""
    host_bytes: int
    """Memory of the machine that its worker process takes; beside a GPU, to load the base."""
    fits: bool  # Whether it trains in less than ``memory_bytes`` of the plan
    scoring_fits: bool  # Whether it is scored in less
    states_fit: bool
    """Whether base, trained weights, gradients and optimizer states do, without any pass."""
    limited_by: GroupLimit  # What keeps the group from being larger
    stages: StageSeconds
    seconds: float  # Of all stages


class Plan(Record):
    study: str
    model: str
    machine: str
    memory_bytes: int  # Of the machine, or ``memory_limit`` if that is less
    library_bytes: int  # Memory of a process besides what its groups need
    dtype: str
    trials: int
    groups: tuple[_GroupPlan, ...]
    evaluations: int  # Models x tasks x splits
    curve_evaluations: int
    """Trials x tasks x points while they train, on at most ``evaluate_items`` items each."""
    train_tokens: int
    evaluation_tokens: int
    disk_bytes: int
    stages: StageSeconds  # Of the whole study on one device
    seconds: float  # Their sum
    gpus: int
    executor: str | None
    """What starts a process for each group, which is then a unit; None: one process per device."""
    start_seconds: float  # Until such a process trains; 0 without an executor
    devices: int  # That each group takes, ``train.devices``
    device_seconds: float  # What the study takes of all devices together
    shared_seconds: float
    """What comes before and after all groups. Without an executor: the start, all work on the base
    and the report. With one: the report, the analyses of the base, for ``local`` the imports of
    the process that workers are forked from, and the base's scores if units train on rows that it
    samples."""
    critical_seconds: float
    """That and the longest group or unit: no number of devices ends sooner."""
    wall_seconds: float  # On ``gpus`` devices: that first, then the groups, see :func:`makespan`
    basis: str  # What the estimate of time rests on
    expected_tokens: int | None = None
    """Training tokens that an adaptive study is expected to need; the rest of the plan is that of
    the grid, the most that it can train."""
    expected_seconds: float | None = None  # The same for its time on ``gpus`` devices
    budget: str | None = None
    """Its limits, such as ``24 trials``; time is not limited by ``hours`` here."""
    savings: tuple[Saving, ...]  # The largest savings, largest first
    notes: tuple[str, ...]


def make_plan(
    inputs: PreparedStudy,
    machine: Machine | None = None,
    gpus: int = 1,
    executor: str | None = None,
) -> Plan:
    """Count and estimate, for ``gpus`` devices of a machine; without one a short product is
    measured here. An ``executor`` starts a process for each group."""
    machine = machine or _measured_machine(inputs)
    model, items = CostModel(inputs, machine), inputs.items
    scored = _scoring_by_trial(model)
    costs: dict[str, StageSeconds] = {}
    for group in inputs.groups:
        costs |= _trial_costs(model, scored, group)
    groups = tuple(_plan_group(model, group, costs) for group in inputs.groups)
    base_items = [item for _, task, split in inputs.base_evals() for item in items[task, split]]
    sampled = inputs.sampled_row_tokens()
    scoring = model.scoring(base_items) + model.scoring(sampled)
    base_tokens = sum(item.total for item in (*base_items, *sampled))
    forked = CAN_FORK and executor == "local"
    start = model.start(base_tokens, forked=forked)
    once, of_unit = (start, 0.0) if executor is None else (0.0, start)
    base = StageSeconds(
        starting=once + ENDING_SECONDS,
        training=0.0,
        scoring=scoring,
        analyses={a.name: a.base_seconds(model) for a in enabled_analyses(inputs.config)},
    )
    stages = summed([base, *costs.values()])
    shared, base_unit = base.total, list[float]()
    if executor is not None:
        shared += IMPORT_SECONDS if forked else 0
        if sampled:  # rows that other units wait for
            shared += of_unit
        else:
            shared, base_unit = shared - scoring, [of_unit + scoring]
    unit_seconds = base_unit + [of_unit + group.seconds for group in groups]
    devices = inputs.config.train.devices
    products = sum(
        model.products(model.training_operations(t, inputs.training_tokens(t)))
        for t in inputs.runs(inputs.trials)
        if t.given is None
    )
    evaluations = len(inputs.base_evals()) + sum(
        len(inputs.wanted_evals(t.trial_id, t.task)) + len(inputs.analysis_evals(t))
        for t in inputs.trials
    )
    return Plan(
        study=inputs.config.name,
        model=inputs.config.model.label,
        machine=machine.label,
        memory_bytes=_available_bytes(inputs, machine),
        library_bytes=inputs.grouping.model.library_bytes,
        dtype=dtype_name(inputs.dtype),
        trials=len(inputs.trials),
        groups=groups,
        evaluations=evaluations,
        curve_evaluations=sum(
            len(inputs.scored_steps(t)) * len(inputs.curve_tasks(t.task)) for t in inputs.trials
        ),
        train_tokens=sum(group.num_tokens for group in groups),
        evaluation_tokens=base_tokens + sum(cost.tokens for cost in scored.values()),
        disk_bytes=disk_bytes(model),
        stages=stages,
        seconds=stages.total,
        gpus=max(gpus, devices),
        executor=executor,
        start_seconds=of_unit,
        devices=devices,
        device_seconds=devices * (shared + sum(unit_seconds)),
        shared_seconds=shared,
        critical_seconds=shared + max(unit_seconds, default=0.0),
        wall_seconds=shared + makespan(unit_seconds, max(1, gpus // devices)),
        basis=machine.basis(inputs.dtype, products / max(stages.training * devices, 1e-9)),
        **_expected_cost(model, scored, shared, base_unit, of_unit, max(1, gpus // devices)),
        savings=largest_savings(inputs.config, inputs.trials, costs, stages, items),
        notes=inputs.notes,
    )


def _measured_machine(inputs: PreparedStudy) -> Machine:
    """This machine, with what training steps of the study's base take on it."""
    keep_freed_memory()
    limit_kernel_cache()
    machine = this_machine(inputs.device, inputs.dtype, widest(inputs))
    pace = measured_pace(CostModel(inputs, machine))
    return replace(machine, pace=pace.factor, probed_layers=pace.layers)


def disk_bytes(model: CostModel) -> int:
    """Of all stored weights; or of the first seeds' checkpoints, with two moments each, that an
    adaptive study has between two rungs, if that is more."""
    inputs = model.inputs
    weights = {t: FLOAT32_BYTES * model.parameters(t) for t in inputs.trials}
    stored = sum(size * (1 + len(inputs.snapshot_steps(t))) for t, size in weights.items())
    return max(stored, sum(3 * size for trial, size in weights.items() if inputs.rung_steps(trial)))


def _expected_cost(
    model: CostModel,
    scored: Mapping[str, _ScoringCost],
    shared_seconds: float,
    base_unit: Sequence[float],
    start_seconds: float,
    places: int,
) -> dict[str, Any]:
    """Fields of a plan that only an adaptive study has. ``base_unit`` is scored beside the first
    round; ``places`` units run at a time, and a round begins when the one before has ended."""
    inputs = model.inputs
    if inputs.config.strategy == "grid":
        return {}
    shares = expected_shares(inputs)
    tokens = sum(shares[t.trial_id] * inputs.training_tokens(t) for t in inputs.trials)
    first, *later = _expected_rounds(model, scored, shares, start_seconds)
    seconds = sum(makespan(units, places) for units in ([*base_unit, *first], *later))
    budget = inputs.config.budget and inputs.config.budget.text
    return {
        "expected_tokens": round(tokens),
        "expected_seconds": shared_seconds + seconds,
        "budget": budget,
    }


def _expected_rounds(
    model: CostModel,
    scored: Mapping[str, _ScoringCost],
    shares: Mapping[str, float],
    start_seconds: float,
) -> list[list[float]]:
    """Seconds of the units of each round of an adaptive study; ``shares`` are of each trial's
    training.

    First seeds train together and begin again after each rung, from a checkpoint; weights are
    stored of those that reach their end. Later seeds are a round each, in which every trial is a
    unit; as nobody knows which they are, each unit takes the mean.
    """
    inputs, first_seed = model.inputs, model.inputs.config.seeds[0]
    first = [trial for trial in inputs.trials if trial.seed == first_seed]
    groups = inputs.grouping.groups(first, inputs.config)
    shares_between = list(pairwise((0.0, *inputs.rungs, 1.0)))
    rounds: list[list[float]] = [[] for _ in shares_between]
    for group in groups:
        costs = _trial_costs(model, scored, group)
        faults = model.page_faults(group) / len(group)
        for units, (begin, end) in zip(rounds, shares_between, strict=True):
            active = [trial for trial in group if shares[trial.trial_id] > begin]
            if not active:
                break
            seconds = start_seconds + len(active) * faults
            for trial in active:
                own = costs[trial.trial_id]
                seconds += (end - begin) * (own.total - own.starting)
                seconds += ((begin > 0) + (end < 1)) * model.checkpoint(trial)
                seconds += (end == 1) * model.stored_weights(trial)
            units.append(seconds)
    for seed in inputs.config.seeds[1:]:
        of_seed = [trial for trial in inputs.trials if trial.seed == seed]
        seconds = sum(
            shares[t.trial_id]
            * (start_seconds + _trial_costs(model, scored, (t,))[t.trial_id].total)
            for t in of_seed
        )
        count = max(1, round(sum(shares[trial.trial_id] for trial in of_seed)))
        rounds.append([seconds / count] * count)
    return rounds


def _available_bytes(inputs: PreparedStudy, machine: Machine) -> int:
    """Memory of the machine, or ``memory_limit`` if that is less."""
    has = round(machine.memory * 1e9)
    return min(has, inputs.config.memory_limit or has)


def widest(inputs: PreparedStudy) -> tuple[int, int]:
    """The shape of the largest weight but the output layer's."""
    shapes = inputs.base.shapes
    layers = [s for name, s in shapes.linear_shapes.items() if name != shapes.output_layer]
    return max(layers, key=lambda shape: shape[0] * shape[1])


def _plan_group(model: CostModel, group: Group, costs: Mapping[str, StageSeconds]) -> _GroupPlan:
    inputs, config = model.inputs, model.inputs.config
    memory = inputs.grouping.memory(inputs.runs(group), config.train)
    scoring, available = inputs.scoring_bytes(group), _available_bytes(inputs, model.machine)
    stages = summed([costs[trial.trial_id] for trial in group])
    return _GroupPlan(
        task=group[0].task,
        labels=tuple(f"{trial.arm_label} seed={trial.seed}" for trial in group),
        steps=max(map(inputs.num_steps, group)),
        num_tokens=sum(map(inputs.training_tokens, inputs.runs(group))),
        memory_bytes=memory.with_pass(max(memory.pass_bytes, scoring)),
        host_bytes=memory.host_bytes(inputs.device, scoring),
        fits=memory.total_bytes <= available,
        scoring_fits=memory.with_pass(scoring) <= available,
        states_fit=memory.base_bytes + memory.state_bytes <= available,
        limited_by=what_limits(group, inputs.groups, config.max_group_size),
        stages=stages,
        seconds=stages.total,
    )


def _scoring_by_trial(model: CostModel) -> dict[str, _ScoringCost]:
    """By trial id; trials scored on the same items are counted once."""
    inputs = model.inputs
    counted: dict[tuple[object, ...], _ScoringCost] = {}
    by_trial = {}
    for trial in inputs.trials:
        num_points = len(inputs.scored_steps(trial))
        kind = (trial.task, num_points, len(inputs.analysis_evals(trial)))
        if kind not in counted:
            evaluated = _evaluated_items(inputs, trial)
            tokens = sum(item.total for item in evaluated)
            counted[kind] = _ScoringCost(tokens, model.scoring(evaluated))
        by_trial[trial.trial_id] = counted[kind]
    return by_trial


def _trial_costs(
    model: CostModel, scored: Mapping[str, _ScoringCost], group: Group
) -> dict[str, StageSeconds]:
    inputs, training, faults = model.inputs, model.training(group), model.page_faults(group)
    analyses = enabled_analyses(inputs.config)
    return {
        trial.trial_id: StageSeconds(
            starting=faults / len(group) + model.stored_weights(trial),
            training=training[trial.trial_id],
            scoring=scored[trial.trial_id].seconds,
            analyses={a.name: a.trial_seconds(model, trial) for a in analyses},
        )
        for trial in group
    }


def _evaluated_items(inputs: PreparedStudy, trial: TrialSpec) -> list[ItemTokens]:
    """Every item that a trial is scored on, during training and after, once for each time."""
    few, items = inputs.config.train.evaluate_items, inputs.items
    after = inputs.wanted_evals(trial.trial_id, trial.task) + inputs.analysis_evals(trial)
    point = [i for task in inputs.curve_tasks(trial.task) for i in items[task, "validation"][:few]]
    return point * len(inputs.scored_steps(trial)) + [
        item for _, task, split in after for item in items[task, split]
    ]


def summed(costs: Sequence[StageSeconds]) -> StageSeconds:
    names = dict.fromkeys(name for cost in costs for name in cost.analyses)
    return StageSeconds(
        starting=sum(cost.starting for cost in costs),
        training=sum(cost.training for cost in costs),
        scoring=sum(cost.scoring for cost in costs),
        analyses={n: sum(cost.analyses.get(n, 0.0) for cost in costs) for n in names},
    )


def makespan(seconds: Sequence[float], devices: int) -> float:
    """When the last device is done, if each unit, longest first, goes to the first free one.

    >>> makespan([3, 3, 2, 2, 2], 2)
    7
    """
    busy = [0.0] * devices
    for unit in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + unit)
    return max(busy)
