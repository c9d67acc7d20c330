"""What a study will cost, counted or estimated before anything runs.

Trials, groups, steps and tokens are counted. They give the number of operations: 2 per weight and
token forward, the same backward for activations, and the same again for trained weights. Time is
that number divided by the measured rate of a matrix product and by the share of it that real steps
reach.
"""

import time
from collections.abc import Mapping, Sequence

import torch

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRows
from rankscope.evaluate.scorers import get_scorer
from rankscope.models.methods import get_method
from rankscope.models.parameters import TrainingCost
from rankscope.records import Record, TrialSpec
from rankscope.run.groups import Group, GroupLimit, group_steps, what_limits
from rankscope.run.prepared import PreparedStudy
from rankscope.train.step_schedule import planned_steps, trial_protocol

SHARE_OF_PEAK = 0.25
"""Share of the measured matrix-product rate that a step reaches. LOG.md, "a group on a CPU is
correct, not yet fast": a group of the pocket study did 47 GFLOP/s on two cores that can do 200,
float32. Small models reach less."""

PROBE_SIZE = 1024
PROBE_SECONDS = 0.3


class GroupPlan(Record):
    """One group, planned."""

    task: str
    labels: tuple[str, ...]
    """Its trials."""
    steps: int
    num_tokens: int
    """Training tokens of all its trials together."""
    memory_bytes: int
    """Peak while it trains, estimated: base, adapters with their states, one forward and backward
    pass. The libraries' own few hundred MB come on top."""
    limited_by: GroupLimit
    """What keeps the group from being larger."""
    seconds: float
    """Estimate, training and evaluation."""


class Plan(Record):
    """A study, planned."""

    study: str
    model: str
    device: str
    dtype: str
    trials: int
    groups: tuple[GroupPlan, ...]
    evaluations: int
    """Models x tasks x splits."""
    curve_evaluations: int
    """Trials x tasks x points while they train, on at most ``evaluate_items`` items each."""
    train_tokens: int
    evaluation_tokens: int
    disk_bytes: int
    seconds: float
    """Estimate of the whole study."""
    measured_gflops: float
    """Rate of a matrix product on this device, 10^9 operations per second."""
    notes: tuple[str, ...]


def make_plan(inputs: PreparedStudy) -> Plan:
    """Count and estimate; only the rate of one matrix product is measured."""
    shapes = inputs.shapes
    rate = product_rate(inputs.device, inputs.dtype) * SHARE_OF_PEAK
    item_tokens = evaluation_tokens(inputs)
    scored_tokens = trial_tokens(inputs, item_tokens)
    groups = tuple(plan_group(inputs, group, scored_tokens, rate) for group in inputs.groups)
    base_tokens = sum(sum(item_tokens[task, split]) for _, task, split in inputs.base_evals())
    evaluations = len(inputs.base_evals()) + sum(
        len(inputs.wanted_evals(t.trial_id, t.task)) + len(inputs.wanted_variants(t))
        for t in inputs.trials
    )
    return Plan(
        study=inputs.config.name,
        model=inputs.config.model.label,
        device=str(inputs.device),
        dtype=str(inputs.dtype).removeprefix("torch."),
        trials=len(inputs.trials),
        groups=groups,
        evaluations=evaluations,
        curve_evaluations=sum(
            len(inputs.curve_steps(t)) * len(inputs.curve_tasks(t.task)) for t in inputs.trials
        ),
        train_tokens=sum(group.num_tokens for group in groups),
        evaluation_tokens=base_tokens + sum(scored_tokens.values()),
        disk_bytes=sum(
            trial_cost(inputs, trial).weight_bytes * (1 + len(inputs.snapshot_steps(trial)))
            for trial in inputs.trials
        ),
        seconds=sum(p.seconds for p in groups) + 2 * shapes.num_parameters * base_tokens / rate,
        measured_gflops=rate / SHARE_OF_PEAK / 1e9,
        notes=inputs.notes,
    )


def plan_group(
    inputs: PreparedStudy, group: Group, scored_tokens: Mapping[str, int], rate: float
) -> GroupPlan:
    """Count one group's steps and tokens and estimate its memory and time."""
    config, shapes = inputs.config.train, inputs.shapes
    rows = inputs.rows[group[0].task]
    protocols = [trial_protocol(trial, config) for trial in group]
    own = [trained_tokens(rows, protocol) for protocol in protocols]
    tokens = [n + replayed_tokens(inputs, t, n) for t, n in zip(group, own, strict=True)]
    costs = [trial_cost(inputs, trial) for trial in group]
    backward = 4 if group[0].is_full else 2
    operations = sum(
        num_tokens
        * (
            (2 + backward) * shapes.num_parameters
            + (0 if trial.is_full else 6 * cost.trainable_parameters)
        )
        for trial, cost, num_tokens in zip(group, costs, tokens, strict=True)
    )
    operations += sum(
        2 * shapes.num_parameters * (replayed_tokens(inputs, t, n) if t.replay else n)
        for t, n in zip(group, own, strict=True)
        if t.kl_to_base  # the bare base's forward pass
    )
    scored = sum(scored_tokens[trial.trial_id] for trial in group)
    operations += scored * 2 * shapes.num_parameters
    return GroupPlan(
        task=group[0].task,
        labels=tuple(f"{trial.arm_label} seed={trial.seed}" for trial in group),
        steps=group_steps(group, len(rows.rows), rows.num_tokens, config),
        num_tokens=sum(tokens),
        memory_bytes=inputs.grouping.memory(group, config).total_bytes,
        limited_by=what_limits(group, inputs.groups, inputs.config.max_group_size),
        seconds=operations / rate,
    )


def trained_tokens(rows: EncodedRows, protocol: TrainConfig) -> int:
    """Tokens that one trial trains on, if every row has the mean length."""
    steps = planned_steps(len(rows.rows), rows.num_tokens, protocol)
    rows_per_step = min(len(rows.rows), protocol.batch_size * protocol.gradient_accumulation)
    return round(steps * rows_per_step * rows.num_tokens / len(rows.rows))


def replayed_tokens(inputs: PreparedStudy, trial: TrialSpec, own_tokens: int) -> int:
    """Replayed tokens beside ``own_tokens``, if every row has the mean length."""
    if trial.replay is None or not trial.replay_share:
        return 0
    own, general = inputs.rows[trial.task], inputs.replay_rows[trial.replay]
    num_rows = own_tokens * len(own.rows) / own.num_tokens
    beside = num_rows * trial.replay_share / (1 - trial.replay_share)
    return round(beside * general.num_tokens / len(general.rows))


def trial_tokens(
    inputs: PreparedStudy, item_tokens: Mapping[tuple[str, str], Sequence[int]]
) -> dict[str, int]:
    """By trial, the tokens of scoring it, during training and after."""
    few = inputs.config.train.evaluate_items
    counts = {}
    for trial in inputs.trials:
        after = inputs.wanted_evals(trial.trial_id, trial.task) + inputs.wanted_variants(trial)
        point = sum(
            sum(item_tokens[task, "validation"][:few]) for task in inputs.curve_tasks(trial.task)
        )
        counts[trial.trial_id] = len(inputs.curve_steps(trial)) * point + sum(
            sum(item_tokens[task, split]) for _, task, split in after
        )
    return counts


def evaluation_tokens(inputs: PreparedStudy) -> dict[tuple[str, str], list[int]]:
    """Tokens one model reads (and writes) on each item of a split of a task.

    Generated answers count at their maximum length.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for _, name, split in inputs.base_evals():
        task, item_tokens = inputs.tasks[name], []
        scorers = {
            item.item_id: part.spec.scorer
            for part in task.parts
            for item in (*part.validation, *part.test)
        }
        for item in task.validation if split == "validation" else task.test:
            tokens = len(inputs.encoder.prompt_ids(item))
            if get_scorer(scorers.get(item.item_id, task.spec.scorer)).generates:
                tokens += inputs.config.evaluate.max_new_tokens
            else:
                answers = item.choices or (item.completion,)
                tokens += sum(len(inputs.encoder.answer_ids(text, item)) for text in answers)
            item_tokens.append(tokens)
        counts[name, split] = item_tokens
    return counts


def trial_cost(inputs: PreparedStudy, trial: TrialSpec) -> TrainingCost:
    """Trainable parameters of a trial and the memory they need besides the base."""
    method = get_method(trial.method)
    return method.cost(trial, inputs.shapes, inputs.folder, inputs.dtype)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, measured for 0.3 s."""
    a = torch.randn(PROBE_SIZE, PROBE_SIZE, device=device).to(dtype)
    b = a.clone()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    a @ b
    wait()
    begun = time.perf_counter()
    count = 0
    while time.perf_counter() - begun < PROBE_SECONDS:
        a @ b
        wait()
        count += 1
    return count * 2 * PROBE_SIZE**3 / (time.perf_counter() - begun)
