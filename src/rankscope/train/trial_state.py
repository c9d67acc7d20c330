"""One trial in training: its parameters, optimizer, order of rows and counters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import ReplaySampler, RowSampler
from rankscope.models.base import Base, enable_gradient_checkpointing
from rankscope.models.grouped_lora import choose_lora_implementation
from rankscope.models.init_context import InitContext
from rankscope.models.lora import Adapter
from rankscope.models.methods.method import Method
from rankscope.models.sharding import is_sharded, local, whole
from rankscope.records import LossPoint, PenaltyPoint, TrialSpec
from rankscope.train.objectives.objective import Objective, objective_of
from rankscope.train.step import (
    LOSS_SCALE,
    SCALE_PATIENCE,
    LossTerm,
    clip_gradients,
    new_optimizer,
    rate_groups,
    set_rate,
    unscale_gradients,
)
from rankscope.train.step_schedule import learning_rate, planned_steps, trial_protocol

if TYPE_CHECKING:  # importing peft takes a second, and few studies need it
    from rankscope.models.peft_backend.tuner import PeftTuner

TUNER = "tuner/"  # Prefix of the names of a PEFT method's own tensors in a checkpoint
BEST = "best/"  # Prefix of the names of the weights that early stopping would keep
LARGEST_UPDATE = 2.0**8
"""|W - W0| / |W0| above which bfloat16, with 8 significant bits, loses the base."""
LOSS_INCREASE = 3.0
"""Nats above the first step's loss: the right token is then 20 times less likely than at first."""
SHORTEST_STRETCH = 10
STORED_FIELDS = (
    "num_tokens", "num_label_tokens", "num_replay_tokens", "failure", "failure_status",
    "loss_scale", "loss_scale_halvings", "scaled_at",
)  # fmt: skip


@dataclass(slots=True)
class TrialState:
    spec: TrialSpec
    parameters: list[nn.Parameter]
    protocol: TrainConfig
    rows: Sequence[EncodedRow]
    sampler: RowSampler
    num_steps: int
    relative_update: Callable[[], float]  # |W - W0| / |W0| of what it changes
    adapter: Adapter | None = None  # None for full fine-tuning and for a method of the PEFT library
    tuner: "PeftTuner | None" = None  # A method of the PEFT library, on a copy of the base
    replay_rows: Sequence[EncodedRow] = ()
    replay_sampler: ReplaySampler | None = None
    early_stop: "_EarlyStop | None" = None
    loss_scale: float = 1.0  # Above 1 in float16 alone
    loss_scale_halvings: int = 0
    scaled_at: int = 0  # The step at which the scale changed last
    objective: Objective = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    losses: list[LossPoint] = field(default_factory=list)
    penalties: list[PenaltyPoint] = field(default_factory=list)
    rewards: list[dict[str, float]] = field(
        default_factory=list
    )  # By step, as the objective notes them
    written: list[EncodedRow] = field(default_factory=list)  # Its own answers in this step
    num_tokens: int = 0
    num_label_tokens: int = 0
    num_replay_tokens: int = 0
    failure: str | None = None  # Why the trial left the group
    failure_status: Literal["failed", "diverged"] = "diverged"

    def __post_init__(self) -> None:
        self.objective = objective_of(self.protocol.objective)
        parameters: ParamsT = self.parameters
        if self.adapter is not None and self.spec.lr_ratio is not None:
            fast = set(self.adapter.b.values())
            parameters = rate_groups(self.parameters, fast, self.spec.lr_ratio)
        kind = self.protocol.optimizer if self.spec.is_full else "adamw"
        self.optimizer = new_optimizer(parameters, self.protocol.weight_decay, kind)

    @property
    def adapter_name(self) -> str | None:
        return self.adapter.name if self.adapter is not None else None

    @property
    def steps_done(self) -> int:
        return len(self.losses)

    @property
    def needs_row_passes(self) -> bool:
        """Whether each row needs its own forward pass.

        PEFT draws dropout pass by pass, and a row's mask must not depend on the rows beside it.
        """
        return self.tuner is not None and self.tuner.draws

    def is_active(self, step: int) -> bool:
        stopped = self.early_stop.stopped_after if self.early_stop is not None else None
        return self.failure is None and step < (self.num_steps if stopped is None else stopped)

    def begin_step(self, step: int) -> list[LossTerm]:
        """Prepare dropout for the step, count its tokens, and return its loss terms."""
        terms = self.begin_again(step)
        for term in terms:
            num_tokens = sum(len(row.input_ids) for row in term.rows)
            self.num_tokens += num_tokens
            self.num_label_tokens += term.num_labels
            if term.is_replay:
                self.num_replay_tokens += num_tokens
        return terms

    def begin_again(self, step: int) -> list[LossTerm]:
        """Return the step's terms, with its dropout from the beginning."""
        if self.adapter is not None:
            self.adapter.begin_step(step)
        if self.tuner is not None:
            self.tuner.begin_step(step)
        return [replace(term, scale=self.loss_scale) for term in self.loss_terms(step)]

    def loss_terms(self, step: int) -> list[LossTerm]:
        """Return a step's rows by their weight in the loss: own, then replayed ones."""
        name, kl_weight = self.adapter_name, self.spec.kl_to_base or 0.0
        own, objective = self.objective.step_rows(self, step), self.objective
        if self.replay_sampler is None:
            return [LossTerm(name, own, 1.0, kl_weight, objective=objective)]
        replayed = [self.replay_rows[i] for i in self.replay_sampler.step(step)]
        if not replayed:
            return [LossTerm(name, own, objective=objective)]
        num_own = sum(map(len, self.sampler.step(step)))
        share = len(replayed) / (num_own + len(replayed))
        return [
            LossTerm(name, own, 1 - share, objective=objective),
            LossTerm(name, replayed, share, kl_weight, is_replay=True),
        ]

    def halve_scale(self, step: int) -> None:
        self.loss_scale, self.scaled_at = self.loss_scale / 2, step
        self.loss_scale_halvings += 1

    def clip(self) -> Tensor:
        """Clip the gradients of a step; return their norm before, ()."""
        unscale_gradients(self.parameters, self.loss_scale)
        if self.tuner is not None:
            self.tuner.penalize()
        return clip_gradients(self.parameters, self.protocol.max_grad_norm)

    def update(
        self, step: int, losses: Sequence[tuple[LossTerm, tuple[float, float]]], norm: float
    ) -> None:
        """Check and apply the clipped gradients of a step, given the losses and KLs of its
        terms."""
        own = next(loss for term, (loss, _) in losses if not term.is_replay)
        replayed = next((loss for term, (loss, _) in losses if term.is_replay), None)
        kl = next((kl for term, (_, kl) in losses if term.kl_weight), None)
        is_loss_finite = all(math.isfinite(x or 0.0) for x in (own, replayed, kl))
        if is_loss_finite and math.isfinite(norm):
            schedule, warmup = self.protocol.schedule, self.protocol.warmup_fraction
            rate = learning_rate(self.spec.lr, step, self.num_steps, schedule, warmup)
            self.losses.append(LossPoint(step=step, loss=own, lr=rate, grad_norm=norm))
            if replayed is not None or kl is not None:
                self.penalties.append(PenaltyPoint(step=step, replay_loss=replayed, divergence=kl))
            set_rate(self.optimizer, rate)
            self.optimizer.step()
            self.drop_cached_weights()
            if self.tuner is not None:
                self.tuner.after_update(step)
            is_halved = self.loss_scale_halvings and self.loss_scale < LOSS_SCALE
            if is_halved and step - self.scaled_at >= SCALE_PATIENCE:
                self.loss_scale, self.scaled_at = self.loss_scale * 2, step
        else:
            what = "loss" if not is_loss_finite else "gradient norm"
            self.failure = f"{what} not finite at step {step + 1} of {self.num_steps}"
            if self.loss_scale_halvings:
                self.failure += (
                    f", the loss scale halved {self.loss_scale_halvings} times: the learning rate "
                    "is too high, or numbers are beyond float16's 65,504; dtype float32 shows which"
                )
        self.optimizer.zero_grad(set_to_none=True)
        if self.failure is None and (why := self.objective.why_hopeless(self)):
            self.failure, self.failure_status = why, "failed"
        if self.failure is None and (reason := self.why_diverged(step + 1)):
            self.failure = f"after step {step + 1} of {self.num_steps} {reason}"

    def why_diverged(self, steps_done: int) -> str | None:
        points = (*self.losses[:1], *self.losses[-_judged_stretch(self.num_steps) :])
        judged = [] if self.objective.by_row else [point.loss for point in points]
        if judged and (reason := _excessive_loss(judged, self.num_steps)):
            return reason
        if not is_update_checked(steps_done, self.num_steps):
            return None
        return _excessive_update(self.relative_update())

    def drop_cached_weights(self) -> None:
        if self.adapter is not None:
            self.adapter.drop_cached_weights()

    def observe_score(self, step: int, score: float) -> None:
        """Pass the in-domain score after ``step`` steps to the early stop, if the trial has one.

        While all steps had rate 0, the weights are the base's. Their score does not count, or the
        best weights could be untrained ones.
        """
        if self.early_stop is not None and any(point.lr > 0 for point in self.losses):
            self.early_stop.observe(step, score, self.parameters)

    def finish(self) -> None:
        """End the trial: restore the best weights of an early stop, and check the result."""
        if self.failure is not None:
            return
        if self.early_stop is not None:
            self.early_stop.restore_best(self.parameters)
            self.drop_cached_weights()
        # Each step checks the loss and gradient before its update; nothing checks the last update.
        if not _all_finite(self.parameters):
            self.failure = "weights not finite after the last step"
        elif reason := self.why_nothing_trained():
            self.failure_status = "failed"
            self.failure = f"nothing was trained: {reason}"

    def why_nothing_trained(self) -> str:
        """Return why the weights are unchanged since the start; '' if they changed."""
        if all(point.lr == 0 for point in self.losses):
            return "the learning rate was 0 at every step"
        if self.adapter is not None and not any(b.any() for b in self.adapter.b.values()):
            return "B of every target module is still zero"
        if all(point.grad_norm == 0 for point in self.losses):
            return "the gradient was 0 at every step"
        return ""

    # --- checkpoint

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs, by name, contiguous on the CPU.

        Tensors that share storage are copied. Of sharded tensors this process returns its own
        shards.
        """
        tensors = {f"parameter/{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{i}"] = torch.as_tensor(value)
        if self.early_stop is not None:
            tensors |= {f"{BEST}{i}": best for i, best in enumerate(self.early_stop.weights)}
        if self.tuner is not None:
            tensors |= {f"{TUNER}{name}": tensor for name, tensor in self.tuner.tensors().items()}
        found: dict[str, Tensor] = {}
        stored = set()
        for name, tensor in tensors.items():
            tensor = local(tensor.detach()).cpu().contiguous()
            storage = tensor.untyped_storage()
            # safetensors rejects shared memory, and bitsandbytes' tables are shared.
            is_own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in stored
            stored.add(storage.data_ptr())
            found[name] = tensor if is_own else tensor.clone()
        return found

    def counters(self) -> dict[str, object]:
        """Return the numbers that a resumed run needs, JSON-compatible; seed and step give
        dropout."""
        return {
            **{name: getattr(self, name) for name in STORED_FIELDS},
            "losses": [point.model_dump() for point in self.losses],
            "penalties": [point.model_dump() for point in self.penalties],
            "rewards": self.rewards,
            "tuner": self.tuner.counters() if self.tuner is not None else {},
            "early_stop": self.early_stop.counters() if self.early_stop is not None else {},
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], counters: Mapping[str, Any]) -> None:
        for name, tensor in tensors.items():
            if name.startswith((TUNER, BEST)):
                continue
            key, _, index = name.rpartition("/")
            parameter = self.parameters[int(index)]
            if key == "parameter":
                local(parameter).copy_(tensor)
            elif tensor.dtype == torch.int64:  # AdamW8bit counts steps in Python
                self.optimizer.state[parameter][key] = int(tensor)
            else:  # the step, too: AdamW is fused, and wants moments in the order of the weights
                place = parameter if tensor.shape == local(parameter).shape else tensor
                made = torch.empty_like(place, dtype=tensor.dtype, device=parameter.device)
                # Copy it: any tensor of the checkpoint would keep its whole file in memory.
                local(made).copy_(tensor)
                self.optimizer.state[parameter][key] = made
        self.drop_cached_weights()
        for name in STORED_FIELDS:
            setattr(self, name, counters.get(name, getattr(self, name)))
        self.losses = [LossPoint.model_validate(point) for point in counters["losses"]]
        self.penalties = [PenaltyPoint.model_validate(point) for point in counters["penalties"]]
        self.rewards = list(counters["rewards"])
        if self.early_stop is not None:
            best = {p: tensors.get(f"{BEST}{i}") for i, p in enumerate(self.parameters)}
            weights = [t.to(p.device, copy=True) for p, t in best.items() if t is not None]
            self.early_stop.restore(counters["early_stop"], weights)
        if self.tuner is not None:
            own = {n.removeprefix(TUNER): t for n, t in tensors.items() if n.startswith(TUNER)}
            self.tuner.restore(own, counters["tuner"])


def start_trials(
    base: Base,
    trials: Sequence[TrialSpec],
    rows: Sequence[EncodedRow],
    config: TrainConfig,
    replay: Mapping[str, Sequence[EncodedRow]],
    fewer_rows: Mapping[int, Sequence[EncodedRow]] = {},
) -> tuple[Base, list[TrialState]]:
    """Make fresh states of a group's trials, and the model that they train."""
    if base.multi_lora.adapters:
        raise ValueError("the base carries adapters already: detach them before training")
    model, states = base, []
    rows_of = {trial: rows if trial.rows is None else fewer_rows[trial.rows] for trial in trials}
    context = InitContext(base, rows_of, trials)
    for trial in trials:
        protocol, own = trial_protocol(trial, config), rows_of[trial]
        steps = planned_steps(len(own), sum(len(row.input_ids) for row in own), protocol)
        model, trained = Method.of(trial.method).prepare(model, trial, context, steps)
        sampler = RowSampler(
            len(own), protocol.batch_size, protocol.gradient_accumulation, trial.seed
        )
        state = TrialState(
            trial,
            list(trained.parameters()),
            protocol,
            own,
            sampler,
            steps,
            partial(Method.of(trial.method).relative_update, trained, base),
            adapter=trained if isinstance(trained, Adapter) else None,
            tuner=cast("PeftTuner", trained) if trial.peft is not None else None,
            early_stop=None if trial.early_stop is None else _EarlyStop(trial.early_stop),
            loss_scale=LOSS_SCALE if base.model.dtype == torch.float16 else 1.0,
        )
        if trial.replay is not None and trial.replay_share:
            state.replay_rows = replay[trial.replay]
            state.replay_sampler = ReplaySampler(
                sampler, len(state.replay_rows), trial.replay_share
            )
        states.append(state)
    wanted, dtype = config.lora_implementation, base.model.dtype
    if choose_lora_implementation(wanted, base.device, dtype) == "grouped_mm":
        model.multi_lora.group(dtype)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model.model, model.multi_lora)
    return model, states


# --- early end of a trial: by its score, or by divergence although all its numbers are finite
# (docs/methods.md)


class _EarlyStop:
    """Decides when a trial stops, and keeps its best weights so far.

    Only a score above all earlier ones is better. Of equal scores the first counts, because its
    weights moved least.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best_score, self.best_step = -math.inf, 0
        self.observed_step = 0  # Step of the last point
        self.waited = 0  # Points since the best one
        self.weights: list[Tensor] = []

    def observe(self, step: int, score: float, parameters: Sequence[nn.Parameter]) -> None:
        """Take the in-domain validation score after ``step`` steps; once per step."""
        if step <= self.observed_step:
            return
        self.observed_step = step
        self.waited += 1
        if score > self.best_score:
            self.best_score, self.best_step, self.waited = score, step, 0
            self.weights = [parameter.detach().clone() for parameter in parameters]

    @property
    def stopped_after(self) -> int | None:
        return self.observed_step if self.waited >= self.patience else None

    @torch.no_grad()
    def restore_best(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set the parameters to their values at the best point, if there is one."""
        for parameter, best in zip(parameters, self.weights, strict=bool(self.weights)):
            parameter.copy_(best)

    def counters(self) -> dict[str, float]:
        names = ("best_score", "best_step", "observed_step", "waited")
        return {name: getattr(self, name) for name in names} if self.observed_step else {}

    def restore(self, counters: dict[str, float], weights: list[Tensor]) -> None:
        vars(self).update(counters, weights=weights)


def is_update_checked(steps_done: int, num_steps: int) -> bool:
    """Whether the update's norm is due: after 1, 2, 4, 8, ... steps and after the last.

    The norms then cost next to nothing, and a trial that runs away trains at most twice as long as
    necessary.
    """
    return steps_done & (steps_done - 1) == 0 or steps_done == num_steps


def _excessive_update(relative: float) -> str | None:
    """Return why an update of this norm, relative to the weights it changes, is no fine-tuning."""
    if relative <= LARGEST_UPDATE:  # not so for NaN
        return None
    return (
        f"the update of the weights is {relative:.3g} times as large as the weights of the base "
        f"(limit {LARGEST_UPDATE:g})"
    )


def _judged_stretch(num_steps: int) -> int:
    """Count the consecutive steps that :func:`_excessive_loss` looks at, besides the first."""
    return max(SHORTEST_STRETCH, -(-num_steps // 10))


def _excessive_loss(losses: Sequence[float], num_steps: int) -> str | None:
    """Return why a trial with these losses cannot recover; None if it can.

    Losses are nats per label token, by step; all but the first and the last :func:`_judged_stretch`
    may be missing. The first step's loss is that of the start, before any update. A trial is lost
    if every loss of a stretch is more than twice that, and more than 3 nats above it. A stretch is
    at least ten steps, and a tenth of all: spikes, warm-up and the noise of small steps are shorter
    or lower.
    """
    stretch = _judged_stretch(num_steps)
    if len(losses) <= stretch:
        return None
    first, lowest = losses[0], min(losses[-stretch:])
    if lowest <= first + max(first, LOSS_INCREASE):
        return None
    return (
        f"the loss was {lowest:.3g} or more for {stretch} steps, and {first:.3g} at the first step"
    )


def _all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether all values are finite; all shards have to call this if they are sharded."""
    values = [whole(p.detach().norm()) if is_sharded(p) else p for p in parameters]
    return not values or bool(torch.stack([torch.isfinite(x).all() for x in values]).all())
