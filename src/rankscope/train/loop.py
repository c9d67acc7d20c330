"""THE training loop: a group of adapter trials, or one full fine-tuning trial, on one base.

In every optimizer step, each trial that has steps left contributes the rows of its own step. The
rows of all trials run through the shared base together, in forward passes of a size that suits the
machine (``step.py``). Replay and KL to the base are terms of a trial's loss.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.errors import CONTINUES, Interrupted
from rankscope.models.base import Base, disable_gradient_checkpointing
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint, restore_states, save_states
from rankscope.train.step import compute_gradients
from rankscope.train.trial_state import TrialState, start_trials

StepCallback = Callable[[int, Base, Sequence[TrialState]], None]
"""Called between two optimizer steps with the number of steps done, the trained model and its
trials. It must not change weights or draw random numbers. A resumed run calls it again for the last
stored step, because a stop may have cut its first call short."""


@dataclass(frozen=True, slots=True)
class GroupResult:
    states: tuple[TrialState, ...]  # In the order of the trials
    tuned: Base  # The base with the adapters attached; in full fine-tuning the trained copy
    seconds: float  # Training time of this and earlier runs, without callbacks


def train_group(
    base: Base,
    trials: Sequence[TrialSpec],
    rows: Sequence[EncodedRow],
    config: TrainConfig,
    *,
    replay: Mapping[str, Sequence[EncodedRow]] | None = None,
    fewer_rows: Mapping[int, Sequence[EncodedRow]] = {},
    checkpoint: GroupCheckpoint | None = None,
    progress: Callable[[int, int, int, list[float]], None] = lambda *_: None,
    callbacks: Sequence[StepCallback] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> GroupResult:
    """Train one group to its end, from its checkpoint if there is one.

    A group is adapter trials of one task on the frozen base, or a single trial of a method that
    trains alone. Each trial sees its rows in its own seed's order, and may override parts of
    ``config``.

    Args:
        rows: rows of the training task.
        replay: general rows by task.
        fewer_rows: rows of trials that train on fewer, by their number.
        checkpoint: stores the state at most every ``checkpoint_seconds``.
        progress: receives the steps done, all steps, the tokens of the last one, and the losses of
            the trials that took it, on their own rows.
        callbacks: called between steps; their time does not count as training time.
        should_stop: asked after every step. If true, the state is stored and Interrupted is raised.

    Adapters stay attached to ``base``, also after an error; the caller detaches them.
    """
    model, states = start_trials(base, trials, rows, config, replay or {}, fewer_rows)
    first_step, seconds_before = restore_states(checkpoint, states) if checkpoint else (0, 0.0)
    num_steps = max(state.num_steps for state in states)
    started = time.monotonic()
    callback_seconds = 0.0
    model.multi_lora.training = True
    try:
        if first_step:
            callback_seconds += _run_callbacks(callbacks, first_step, model, states)
            # A callback that a stop cut short again must find this step again.
            if should_stop():
                raise Interrupted(f"stopped at step {first_step} of {num_steps}", do=CONTINUES)
        for step in range(first_step, num_steps):
            active = [state for state in states if state.is_active(step)]
            # A pass lays its rows out by adapter, in the order in which adapters are stored.
            active.sort(key=lambda state: model.multi_lora.place(state.adapter_name))
            if not active:
                break

            # Some objectives need the current models, to let all of them write answers together.
            for objective in dict.fromkeys(state.objective for state in active):
                own = [state for state in active if state.objective is objective]
                objective.begin_step(model, own, step)

            # Forward and backward. Gradients add up over the passes of a step. Trials share no
            # trained parameter, so each gets the gradient that it would have had alone.
            terms_of = [state.begin_step(step) for state in active]
            one_row_each = not model.packs or any(state.needs_row_passes for state in active)
            batch_tokens = 1 if one_row_each else config.batch_tokens  # a pass has at least one row
            trained = [p for state in active for p in state.parameters]
            while True:
                terms = [term for own_terms in terms_of for term in own_terms]
                with model.optimizer_step(trained):
                    losses = compute_gradients(model, base, terms, batch_tokens)
                clipped = [state.clip().to(model.device) for state in active]
                norms = torch.stack(clipped).tolist()  # one wait for all
                too_large = [
                    state
                    for state, norm in zip(active, norms, strict=True)
                    if state.loss_scale > 1 and not math.isfinite(norm)
                ]
                if not too_large:
                    break
                # Beyond float16's range: repeat the step from half the scale; at 1 the trial has
                # diverged.
                for state in too_large:
                    state.halve_scale(step)
                for parameter in trained:
                    parameter.grad = None
                terms_of = [state.begin_again(step) for state in active]

            # Check and update, each trial by itself.
            for state, own_terms, norm in zip(active, terms_of, norms, strict=True):
                own_losses, losses = losses[: len(own_terms)], losses[len(own_terms) :]  # in order
                state.update(step, list(zip(own_terms, own_losses, strict=True)), norm)

            num_tokens = sum(len(row.input_ids) for term in terms for row in term.rows)
            shown = [state.losses[-1].loss for state in active if state.failure is None]
            progress(step + 1, num_steps, num_tokens, shown)
            callback_seconds += _run_callbacks(callbacks, step + 1, model, states)

            stop = should_stop()
            if checkpoint and (stop or checkpoint.is_due(config.checkpoint_seconds)):
                seconds = seconds_before + time.monotonic() - started - callback_seconds
                save_states(checkpoint, states, step + 1, seconds)
            if stop:
                raise Interrupted(f"stopped after step {step + 1} of {num_steps}", do=CONTINUES)
    finally:
        model.multi_lora.training = False
        disable_gradient_checkpointing(model.model)
    model.multi_lora.ungroup()
    seconds = seconds_before + time.monotonic() - started - callback_seconds
    for state in states:
        state.finish()
    return GroupResult(tuple(states), model, seconds)


def _run_callbacks(
    callbacks: Sequence[StepCallback], step: int, model: Base, states: Sequence[TrialState]
) -> float:
    started = time.monotonic()
    for callback in callbacks:
        callback(step, model, states)
    return time.monotonic() - started
