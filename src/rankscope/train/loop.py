"""THE training loop: every group of LoRA trials, and full fine-tuning as a group of one.

In every optimizer step each trial that still has steps left contributes the rows of its own step;
they run through the shared base one after another, joined or cut into forward passes of a size that
suits the machine. The loss is the sum over trials of (sum of token losses / label tokens of the
trial's whole optimizer step): parameters of different trials are disjoint, so one backward gives
each the gradient it would have had alone. What a trial has besides its own rows, replay and KL to
the base, is a term of its own loss (``mitigation.py``).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import ReplaySampler, RowSampler
from rankscope.errors import Interrupted, UserError
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.gradient_checkpointing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from rankscope.models.methods import InitContext, new_adapter
from rankscope.models.peft_backend.tuner import new_tuner
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint, GroupState
from rankscope.train.loss import mean_losses
from rankscope.train.regularizers import (
    EarlyStop,
    LossTerm,
    Replayed,
    base_logits_of,
    divergences,
    label_positions,
)
from rankscope.train.step_schedule import ALONE, check_learning_rates, planned_steps, trial_protocol
from rankscope.train.trial_state import StepLosses, TrialState

NOTHING_TRAINED = "nothing was trained"
"""Begins the failure of a trial whose weights training left as they were."""


class Progress(Protocol):
    """Hears of every optimizer step."""

    def __call__(self, step: int, num_steps: int, num_tokens: int, losses: list[float]) -> None:
        """Steps done of all, valid tokens of the step, each active trial's loss."""


class StepCallback(Protocol):
    """Looks at a group between two optimizer steps, and leaves its weights as they are; a state
    with an early stop may be told a score."""

    def __call__(self, step: int, model: Base, states: Sequence[TrialState], /) -> None:
        """``step`` optimizer steps are done; for full fine-tuning ``base`` is the copy it trains.

        Called again for the step that a run is resumed at, since what stopped the run may have
        stopped this too.
        """


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A trained group: the trials in the order given, and the wall time of this and earlier runs.

    For full fine-tuning ``base`` is the trained copy; for LoRA the adapters hang on the states.
    """

    states: tuple[TrialState, ...]
    base: Base
    seconds: float


def train_group(
    base: Base,
    trials: Sequence[TrialSpec],
    rows: Sequence[EncodedRow],
    protocol: TrainConfig,
    *,
    replay: Mapping[str, Sequence[EncodedRow]] | None = None,
    checkpoint: GroupCheckpoint | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[StepCallback] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> GroupResult:
    """Train one group to its end, from its checkpoint where there is one.

    Args:
        base: the frozen base; full fine-tuning trains a float32 copy of it.
        trials: LoRA trials of one task, or a single full trial.
        rows: the task's encoded training rows; each trial sees them in its own seed's order.
        protocol: epochs, batch size and the rest; ``trial_protocol`` says what a trial makes of it.
        replay: by task, the encoded rows that trials may replay.
        checkpoint: where the resumable state goes, at most every ``checkpoint_seconds``.
        progress: called after every optimizer step.
        callbacks: called after that, in order; their time is not the training's.
        should_stop: asked after every step; True writes the state and raises.

    Raises:
        UserError: no rows, steps that are all at rate 0, or full fine-tuning packed with others.
        Interrupted: ``should_stop`` said so.
    """
    if not rows:
        raise UserError("no training rows are left after encoding: there is nothing to train on")
    frozen = base
    base, states = prepare(base, trials, rows, protocol)
    add_mitigations(states, replay or {})
    start_step, seconds_before = resume(states, checkpoint)
    num_steps = max(state.num_steps for state in states)
    begun = saved = time.monotonic()
    base.multi_lora.training = True
    try:
        if start_step:
            begun += timed(callbacks, start_step, base, states)
        for step in range(start_step, num_steps):
            active = [state for state in states if state.is_active(step)]
            if not active:
                break
            for state in active:
                state.begin_step(step)
            loss_terms = [p for i, t in enumerate(active) for p in t.loss_terms(step, i, rows)]
            losses_of = run_step(base, frozen, active, loss_terms, protocol.batch_tokens)
            for state, losses_found in zip(active, losses_of, strict=True):
                state.update(step, losses_found)
            if progress is not None:
                losses = [t.losses[-1].loss for t in active if t.failure is None]
                num_tokens = sum(len(row.input_ids) for p in loss_terms for row in p.rows)
                progress(step + 1, num_steps, num_tokens, losses)
            begun += timed(callbacks, step + 1, base, states)
            now = time.monotonic()
            stop = should_stop()
            if checkpoint is not None and (stop or now - saved >= protocol.checkpoint_seconds):
                save(states, checkpoint, step + 1, seconds_before + now - begun)
                saved = now
            if stop:
                raise Interrupted(
                    f"stopped after step {step + 1} of {num_steps}; the same command continues"
                )
    finally:
        base.multi_lora.training = False
        disable_gradient_checkpointing(base.model)
    for state in states:
        state.keep_best()
        state.failure = state.failure or fault_at_end(state)
    return GroupResult(tuple(states), base, seconds_before + time.monotonic() - begun)


def timed(
    callbacks: Sequence[StepCallback], step: int, base: Base, states: Sequence[TrialState]
) -> float:
    """Call the callbacks; the seconds they took."""
    begun = time.monotonic()
    for callback in callbacks:
        callback(step, base, states)
    return time.monotonic() - begun


def fault_at_end(state: TrialState) -> str | None:
    """Why a trial that came to its last step has no weights worth storing; None where it has."""
    # A step's loss and gradient are looked at before it; after the last one nothing follows.
    if not all(bool(torch.isfinite(parameter).all()) for parameter in state.parameters):
        return "weights not finite after the last step"
    if all(point.lr == 0 for point in state.losses):
        return f"{NOTHING_TRAINED}: the learning rate was 0 at every step"
    if state.adapter is not None and not any(b.any() for b in state.adapter.b.values()):
        return f"{NOTHING_TRAINED}: B of every target module is still zero"
    if all(point.grad_norm == 0 for point in state.losses):
        return f"{NOTHING_TRAINED}: the gradient was 0 at every step"
    return None


def prepare(
    base: Base, trials: Sequence[TrialSpec], rows: Sequence[EncodedRow], protocol: TrainConfig
) -> tuple[Base, list[TrialState]]:
    """Fresh states, and the base they train on (a trainable copy for full fine-tuning)."""
    is_full = any(trial.method == "full" for trial in trials)
    if len(trials) > 1 and any(trial.method in ALONE for trial in trials):
        raise UserError(
            "full fine-tuning and PEFT's own methods change the base itself: each such trial "
            "trains alone, not in a group"
        )
    if base.multi_lora.adapters or base.multi_lora.injected_tuner is not None:
        raise ValueError("the base carries adapters already: detach them before training")
    num_tokens = sum(len(row.input_ids) for row in rows)
    own = [trial_protocol(trial, protocol) for trial in trials]
    steps = [planned_steps(len(rows), num_tokens, each) for each in own]
    for trial in trials:
        check_learning_rates(trial, len(rows), num_tokens, protocol)
    if is_full:
        base = base.trainable_copy()
    tuner = new_tuner(base, trials[0], steps[0]) if trials[0].method == "peft" else None
    if protocol.gradient_checkpointing:
        enable_gradient_checkpointing(base.model, base.multi_lora)
    starts = InitContext(base, rows, trials)
    states = []
    for trial, each, num_steps in zip(trials, own, steps, strict=True):
        adapter = None if is_full or tuner else new_adapter(base.model, trial, starts)
        if adapter is not None:
            base.multi_lora.attach(adapter)
        states.append(
            TrialState(
                spec=trial,
                parameters=list((adapter or tuner or base.model).parameters()),
                adapter=adapter,
                tuner=tuner,
                protocol=each,
                order=RowSampler(
                    len(rows), each.batch_size, each.gradient_accumulation, trial.seed
                ),
                num_steps=num_steps,
            )
        )
    return base, states


def add_mitigations(
    states: Sequence[TrialState], replay: Mapping[str, Sequence[EncodedRow]]
) -> None:
    """Give each state its replayed rows and its early stop, where its trial has them."""
    for state in states:
        spec = state.spec
        if spec.kl_to_base and state.tuner is not None:
            raise UserError(
                f"{spec.label}: kl_to_base needs the bare base, which PEFT's method is on"
            )
        if spec.early_stop is not None and state.tuner is not None and state.tuner.has_state:
            raise UserError(
                f"{spec.label}: early_stop brings back parameters, which PEFT's method is more than"
            )
        if spec.early_stop is not None:
            state.early_stop = EarlyStop(spec.early_stop)
        if spec.replay is not None and spec.replay_share:
            rows = replay[spec.replay]
            order = ReplaySampler(state.order, len(rows), spec.replay_share)
            state.replayed = Replayed(rows, order)


def run_step(
    base: Base,
    frozen: Base,
    active: Sequence[TrialState],
    loss_terms: Sequence[LossTerm],
    batch_tokens: int,
) -> list[StepLosses]:
    """Losses and gradients of one optimizer step of every active trial.

    frozen: the untuned base, which KL looks at; ``base`` itself but for full fine-tuning.
    loss_terms: the rows of the step, those of one trial one after another.
    """
    for loss_term in loss_terms:
        active[loss_term.state].count(loss_term)
    labels = [loss_term.num_labels for loss_term in loss_terms]
    if any(state.needs_row_passes for state in active):
        batch_tokens = 1
    found = torch.zeros(2, len(loss_terms), device=base.device)  # of the rows; of KL to the base
    for parts in forward_passes([loss_term.rows for loss_term in loss_terms], batch_tokens):
        members = [i for i, _ in parts]
        kept = [i for i in members if loss_terms[i].kl_weight]
        of_base = base_logits_of(frozen, [own for i, own in parts if i in kept]) if kept else []
        batch_rows = [
            Row(row.input_ids, label_positions(row), active[loss_terms[i].state].adapter_name)
            for i, own in parts
            for row in own
        ]
        counts = [sum(sum(row.is_label) for row in own) for _, own in parts]
        logits = base.logits(RowBatch.of(batch_rows, base.device))
        losses = mean_losses(
            logits,
            torch.tensor(label_ids(parts), dtype=torch.int64, device=base.device),
            counts,
            [labels[i] / loss_terms[i].weight for i in members],
        )
        total = losses.sum()
        if kept:
            spans = dict(zip(members, logits.split(counts), strict=True))
            for i, base_logits in zip(kept, of_base, strict=True):
                apart = divergences(spans[i], base_logits).sum() / labels[i]
                total = total + loss_terms[i].kl_weight * apart
                found[1, i] += apart.detach()
        total.backward()
        found[0, members] += losses.detach()
    return step_losses(len(active), loss_terms, found.tolist())


def label_ids(parts: Sequence[tuple[int, Sequence[EncodedRow]]]) -> list[int]:
    """The labelled tokens of a pass, in order."""
    return [row.input_ids[t + 1] for _, own in parts for row in own for t in label_positions(row)]


def step_losses(
    count: int, loss_terms: Sequence[LossTerm], found: Sequence[Sequence[float]]
) -> list[StepLosses]:
    """What each of ``count`` trials had in its loss; ``found``: weighted losses and KL by term.

    A term's loss becomes its mean again; weights are those of ``loss_terms``.
    """
    own, replayed, divergence = [0.0] * count, [None] * count, [None] * count
    for loss_term, loss, apart in zip(loss_terms, *found, strict=True):
        i = loss_term.state
        if loss_term.is_replay:
            replayed[i] = loss / loss_term.weight
        else:
            own[i] = loss / loss_term.weight
        if loss_term.kl_weight:
            divergence[i] = apart
    return [StepLosses(*each) for each in zip(own, replayed, divergence, strict=True)]


def forward_passes(
    of_step: Sequence[Sequence[EncodedRow]], batch_tokens: int
) -> list[list[tuple[int, list[EncodedRow]]]]:
    """Cut the rows of one optimizer step, by loss_term, into forward passes of like size.

    A pass is as large as the memory allows and a product is fast, whatever the trials' batch sizes
    and accumulation: the gradient is a sum over the step's rows, however they are cut. Each pass
    lists (loss_term's place in ``of_step``, rows) and has at most ``batch_tokens`` tokens, or one
    row.
    """
    total = sum(len(row.input_ids) for own in of_step for row in own)
    share = total / max(1, math.ceil(total / batch_tokens))
    passes: list[list[tuple[int, list[EncodedRow]]]] = [[]]
    size = seen = 0
    for i, own in enumerate(of_step):
        for row in own:
            length = len(row.input_ids)
            # Either the pass is full, or its middle row would fall into the next share.
            if size and (size + length > batch_tokens or seen + length / 2 > len(passes) * share):
                passes.append([])
                size = 0
            if not passes[-1] or passes[-1][-1][0] != i:
                passes[-1].append((i, []))
            passes[-1][-1][1].append(row)
            size += length
            seen += length
    return passes


def resume(states: Sequence[TrialState], checkpoint: GroupCheckpoint | None) -> tuple[int, float]:
    """Restore the stored state, if any: the next step, and the seconds already spent."""
    stored = checkpoint.load() if checkpoint is not None else None
    if stored is None:
        return 0, 0.0
    for state in states:
        prefix = f"{state.spec.trial_id}/"
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in stored.tensors.items()
            if name.startswith(prefix)
        }
        state.restore(tensors, stored.meta[state.spec.trial_id])  # type: ignore[arg-type]
    return stored.step, float(stored.meta["seconds"])  # type: ignore[arg-type]


def save(
    states: Sequence[TrialState], checkpoint: GroupCheckpoint, step: int, seconds: float
) -> None:
    """Write the state after ``step`` optimizer steps."""
    tensors = {
        f"{state.spec.trial_id}/{name}": tensor
        for state in states
        for name, tensor in state.tensors().items()
    }
    meta: dict[str, object] = {t.spec.trial_id: t.counters() for t in states}
    checkpoint.save(GroupState(step, tensors, {**meta, "seconds": seconds}))
