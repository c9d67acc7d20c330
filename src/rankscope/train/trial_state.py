"""One trial while it trains: its parameters, optimizer, order of rows and counters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.models.lora import Adapter
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.records import LossPoint, PenaltyPoint, TrialSpec
from rankscope.train.optimizer import (
    clip_gradients,
    learning_rate,
    new_optimizer,
    rate_groups,
    set_rate,
)
from rankscope.train.regularizers import EarlyStop, LossTerm, Replayed, loss_terms_of

TUNER = "tuner/"
"""Begins the names of a PEFT method's own tensors in a checkpoint."""
BEST = "best"
"""Key of the weights that early stopping would keep."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """What one optimizer step of one trial had in its loss: means over labelled tokens, nats."""

    own: float
    replayed: float | None = None
    divergence: float | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all of it is a number."""
        return all(math.isfinite(x or 0.0) for x in (self.own, self.replayed, self.divergence))


@dataclass(slots=True)
class TrialState:
    """A trial's own state in a group; neighbours share nothing of it.

    ``adapter`` is None for full fine-tuning, whose parameters are the model's, and for a method of
    PEFT's, which is on the base as ``tuner``. ``failure`` says why the trial left the group.
    """

    spec: TrialSpec
    parameters: list[nn.Parameter]
    adapter: Adapter | None
    protocol: TrainConfig
    order: RowSampler
    num_steps: int
    tuner: PeftTuner | None = None
    replayed: Replayed | None = None
    early_stop: EarlyStop | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    losses: list[LossPoint] = field(default_factory=list)
    num_tokens: int = 0
    num_label_tokens: int = 0
    num_replay_tokens: int = 0
    penalties: list[PenaltyPoint] = field(default_factory=list)
    failure: str | None = None

    def __post_init__(self) -> None:
        parameters: ParamsT = self.parameters
        if self.adapter is not None and self.spec.lr_ratio is not None:
            parameters = rate_groups(
                self.parameters, set(self.adapter.b.values()), self.spec.lr_ratio
            )
        kind = self.protocol.optimizer if self.spec.is_full else "adamw"
        self.optimizer = new_optimizer(parameters, self.protocol.weight_decay, kind)

    @property
    def adapter_name(self) -> str | None:
        """Its adapter's adapter_name in the group; None trains the model itself."""
        return self.adapter.name if self.adapter is not None else None

    def is_active(self, step: int) -> bool:
        """Whether it takes part in optimizer step ``step``."""
        stopped = self.early_stop.stopped_after if self.early_stop is not None else None
        return self.failure is None and step < (self.num_steps if stopped is None else stopped)

    def loss_terms(self, step: int, place: int, rows: Sequence[EncodedRow]) -> list[LossTerm]:
        """The rows of optimizer step ``step``; ``place`` is the trial's among those of the step."""
        own = [rows[i] for micro in self.order.step(step) for i in micro]
        replayed: list[EncodedRow] = []
        if self.replayed is not None:
            replayed = [self.replayed.rows[i] for i in self.replayed.order.step(step)]
        has_replay = self.replayed is not None
        return loss_terms_of(place, own, replayed, self.spec.kl_to_base or 0.0, has_replay)

    def count(self, loss_term: LossTerm) -> None:
        """Count a loss_term's tokens as seen."""
        num_tokens = sum(len(row.input_ids) for row in loss_term.rows)
        self.num_tokens += num_tokens
        self.num_label_tokens += loss_term.num_labels
        if loss_term.is_replay:
            self.num_replay_tokens += num_tokens

    @property
    def needs_row_passes(self) -> bool:
        """Whether each row needs a forward pass of its own: PEFT draws its dropout pass by pass,
        and what a row gets must not hang on how many fit into memory beside it."""
        return self.tuner is not None and self.tuner.draws

    def begin_step(self, step: int) -> None:
        """Make ready for the forward passes of optimizer step ``step``."""
        if self.adapter is not None:
            self.adapter.begin_step(step)
        if self.tuner is not None:
            self.tuner.begin_step(step)

    def update(self, step: int, losses: StepLosses) -> None:
        """Clip, check and apply the gradients of the optimizer step of index ``step``, from 0."""
        if self.tuner is not None:
            self.tuner.penalize()
        norm = clip_gradients(self.parameters, self.protocol.max_grad_norm)
        rate = learning_rate(
            self.spec.lr,
            step,
            self.num_steps,
            self.protocol.schedule,
            self.protocol.warmup_fraction,
        )
        if losses.is_finite and math.isfinite(norm):
            self.losses.append(LossPoint(step=step, loss=losses.own, lr=rate, grad_norm=norm))
            if losses.replayed is not None or losses.divergence is not None:
                self.penalties.append(
                    PenaltyPoint(
                        step=step, replay_loss=losses.replayed, divergence=losses.divergence
                    )
                )
            set_rate(self.optimizer, rate)
            self.optimizer.step()
            if self.adapter is not None:
                self.adapter.weights_changed()
            if self.tuner is not None:
                self.tuner.after_update(step)
        else:
            what = "loss" if not losses.is_finite else "gradient norm"
            self.failure = f"{what} not finite at step {step + 1} of {self.num_steps}"
        self.optimizer.zero_grad(set_to_none=True)

    def observe_score(self, step: int, score: float) -> None:
        """Tell the early stop, where the trial has one, the in-domain score after ``step`` steps.

        Weights that no step has moved yet, all of them at rate 0 as warm-up begins, are the base's:
        their point is not told, or a trial could come to nothing trained.
        """
        if self.early_stop is not None and any(point.lr > 0 for point in self.losses):
            self.early_stop.observe(step, score, self.parameters)

    @property
    def steps_done(self) -> int:
        """Optimizer steps that were made."""
        return len(self.losses)

    def keep_best(self) -> None:
        """At the end: the weights that early stopping found best, where the trial has it."""
        if self.early_stop is not None and self.failure is None:
            self.early_stop.restore_best(self.parameters)
            if self.adapter is not None:
                self.adapter.weights_changed()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name, contiguous on the CPU."""
        found = {f"parameter/{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}/{i}"] = torch.as_tensor(value)
        if self.early_stop is not None:
            found |= {f"{BEST}/{i}": best for i, best in enumerate(self.early_stop.weights)}
        if self.tuner is not None:
            found |= {f"{TUNER}{name}": tensor for name, tensor in self.tuner.tensors().items()}
        return {name: t.detach().cpu().clone().contiguous() for name, t in found.items()}

    def counters(self) -> dict[str, object]:
        """The rest of the state, JSON-compatible."""
        return {
            "losses": [point.model_dump() for point in self.losses],
            "num_tokens": self.num_tokens,
            "num_label_tokens": self.num_label_tokens,
            "failure": self.failure,
            "tuner": self.tuner.counters() if self.tuner is not None else {},
            "num_replay_tokens": self.num_replay_tokens,
            "penalties": [point.model_dump() for point in self.penalties],
            "early_stop": self.early_stop.counters() if self.early_stop is not None else {},
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], counters: dict[str, object]) -> None:
        """Set the state to what :meth:`tensors` and :meth:`counters` gave."""
        of_tuner = {n.removeprefix(TUNER): t for n, t in tensors.items() if n.startswith(TUNER)}
        for name, tensor in tensors.items():
            key, _, index = name.rpartition("/")
            if name.startswith(TUNER) or key == BEST:
                continue
            parameter = self.parameters[int(index)]
            if key == "parameter":
                parameter.copy_(tensor)
            elif tensor.dtype == torch.int64:  # AdamW8bit counts steps in Python
                self.optimizer.state[parameter][key] = int(tensor)
            else:  # the step too: AdamW is fused
                self.optimizer.state[parameter][key] = tensor.to(parameter.device)
        if self.adapter is not None:
            self.adapter.weights_changed()
        losses: Sequence[dict[str, object]] = counters["losses"]  # type: ignore[assignment]
        self.losses = [LossPoint.model_validate(point) for point in losses]
        self.num_tokens = int(counters["num_tokens"])  # type: ignore[call-overload]
        self.num_label_tokens = int(counters["num_label_tokens"])  # type: ignore[call-overload]
        self.num_replay_tokens = int(counters["num_replay_tokens"])  # type: ignore[call-overload]
        penalties: Sequence[dict[str, object]] = counters["penalties"]  # type: ignore[assignment]
        self.penalties = [PenaltyPoint.model_validate(point) for point in penalties]
        self.failure = counters["failure"]  # type: ignore[assignment]
        if self.early_stop is not None:
            best = {n: t for n, t in tensors.items() if n.startswith(f"{BEST}/")}
            self.early_stop.restore(
                counters["early_stop"],  # type: ignore[arg-type]
                [best[f"{BEST}/{i}"].to(p.device) for i, p in enumerate(self.parameters)]
                if best
                else [],
            )
        if self.tuner is not None:
            self.tuner.restore(of_tuner, counters["tuner"])  # type: ignore[arg-type]
