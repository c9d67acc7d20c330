"""One trial while it trains: its parameters, optimizer, order of rows and counters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from rankscope.config.schema import TrainConfig
from rankscope.data.batches import RowOrder
from rankscope.models.lora import Adapter
from rankscope.models.peft_tuner import PeftTuner
from rankscope.records import LossPoint, TrialSpec
from rankscope.train.optimizer import (
    clip_gradients,
    learning_rate,
    new_optimizer,
    rate_groups,
    set_rate,
)

TUNER = "tuner/"
"""Begins the names of a PEFT method's own tensors in a checkpoint."""


@dataclass(slots=True)
class Trainee:
    """A trial's own state in a pack; neighbours share nothing of it.

    ``adapter`` is None for full fine-tuning, whose parameters are the model's, and for a method of
    PEFT's, which is on the base as ``tuner``. ``failure`` says why the trial left the pack.
    """

    spec: TrialSpec
    parameters: list[nn.Parameter]
    adapter: Adapter | None
    protocol: TrainConfig
    order: RowOrder
    num_steps: int
    tuner: PeftTuner | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    losses: list[LossPoint] = field(default_factory=list)
    num_tokens: int = 0
    num_label_tokens: int = 0
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
    def slot(self) -> str | None:
        """Its adapter's slot in the pack; None trains the model itself."""
        return self.adapter.slot if self.adapter is not None else None

    def is_active(self, step: int) -> bool:
        """Whether it takes part in optimizer step ``step``."""
        return self.failure is None and step < self.num_steps

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

    def update(self, step: int, loss: float) -> None:
        """Clip, check and apply the gradients of one optimizer step.

        Args:
            step: the step's index, from 0.
            loss: mean over the step's label tokens, nats.
        """
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
        if math.isfinite(loss) and math.isfinite(norm):
            self.losses.append(LossPoint(step=step, loss=loss, lr=rate, grad_norm=norm))
            set_rate(self.optimizer, rate)
            self.optimizer.step()
            if self.adapter is not None:
                self.adapter.weights_changed()
            if self.tuner is not None:
                self.tuner.after_update(step)
        else:
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            self.failure = f"{what} not finite at step {step + 1} of {self.num_steps}"
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name, contiguous on the CPU."""
        found = {f"parameter/{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key}/{i}"] = torch.as_tensor(value)
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
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], counters: dict[str, object]) -> None:
        """Set the state to what :meth:`tensors` and :meth:`counters` gave."""
        of_tuner = {n.removeprefix(TUNER): t for n, t in tensors.items() if n.startswith(TUNER)}
        for name, tensor in tensors.items():
            key, _, index = name.rpartition("/")
            if name.startswith(TUNER):
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
        self.failure = counters["failure"]  # type: ignore[assignment]
        if self.tuner is not None:
            self.tuner.restore(of_tuner, counters["tuner"])  # type: ignore[arg-type]
