"""Optimizer steps of a trial: their number, their learning rates, and the steps at an interval."""

import math
from typing import Literal

from rankscope.config.arm import ScheduleName
from rankscope.config.study import TrainConfig
from rankscope.errors import UserError
from rankscope.records import TrialSpec


def learning_rate(
    peak: float, step: int, num_steps: int, schedule: ScheduleName, warmup_fraction: float
) -> float:
    """Return the rate of optimizer step ``step`` (from 0) of ``num_steps``, as in transformers.

    Warm-up rises linearly over ceil(warmup_fraction x num_steps) steps from 0 at step 0; the rate
    falls to 0 at ``num_steps``.
    """
    warmup = math.ceil(warmup_fraction * num_steps)
    if step < warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, num_steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * max(0.0, 1 - progress)


def trial_protocol(trial: TrialSpec, train: TrainConfig) -> TrainConfig:
    return train.model_copy(update=trial.overrides)


def planned_steps(num_rows: int, num_tokens: int, train: TrainConfig) -> int:
    """Count the optimizer steps of a trial on ``num_rows`` rows with ``num_tokens`` tokens in all.

    As in transformers' Trainer, an epoch is ceil(ceil(rows / batch) / accumulation) steps, and a
    fraction of an epoch is rounded up to a whole step. ``tokens`` means tokens / ``num_tokens``
    epochs, as if every row had the mean length. ``max_steps`` takes precedence over both.
    """
    if train.max_steps is not None:
        return train.max_steps
    if train.tokens is not None:
        return math.ceil(train.tokens * _epoch_steps(num_rows, train) / num_tokens)
    return math.ceil(train.epochs * _epoch_steps(num_rows, train))


def rows_per_step(num_rows: int, protocol: TrainConfig) -> int:
    """Count the rows that a step draws of ``num_rows``."""
    return min(num_rows, protocol.batch_size * protocol.gradient_accumulation)


def _epoch_steps(num_rows: int, train: TrainConfig) -> int:
    return math.ceil(num_rows / (train.batch_size * train.gradient_accumulation))


def due_steps(
    every: int | Literal["epoch"], num_rows: int, num_tokens: int, train: TrainConfig
) -> tuple[int, ...]:
    """Return every ``every``-th optimizer step and the last one."""
    last = planned_steps(num_rows, num_tokens, train)
    stride = _epoch_steps(num_rows, train) if every == "epoch" else every
    return (*range(stride, last, stride), last)


def trial_steps(trial: TrialSpec, num_rows: int, num_tokens: int, train: TrainConfig) -> int:
    return planned_steps(num_rows, num_tokens, trial_protocol(trial, train))


def check_learning_rates(trial: TrialSpec, num_steps: int, train: TrainConfig) -> None:
    protocol = trial_protocol(trial, train)
    schedule, warmup = protocol.schedule, protocol.warmup_fraction
    if not any(learning_rate(1.0, s, num_steps, schedule, warmup) for s in range(num_steps)):
        raise UserError(
            "train",
            f"{num_steps} optimizer step, whose rate is the 0 that warm-up starts at",
            "at least 2 steps (max_steps, epochs, or a smaller batch_size x "
            "gradient_accumulation), or 'warmup_fraction: 0'",
        )
