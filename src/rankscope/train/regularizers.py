"""What limits forgetting in training: replayed rows, KL to the base, and early stopping.

**Replay.** Every optimizer step has general rows beside the trial's own, which keep their order and
their steps. A share q of all rows is replayed: q / (1 - q) of each step's own rows on top. Each
kind of row counts in the loss by its number of rows, and within a kind every labeled token counts
alike, so that long general texts do not outweigh short answers:

    loss = (1 - p) mean over own labels + p mean over replayed labels,   p = replayed rows / rows

**KL to the base.** weight x mean over labeled tokens of KL(base || tuned), in nats, is added. It
is taken at the labels of the replayed rows if the trial has any, and at those of its own rows
otherwise. It costs one forward pass of the frozen base, without gradient, over these rows; trials
with the same row in the same forward pass share it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import ReplaySampler
from rankscope.models.base import Base, Row, RowBatch
from rankscope.train.loss import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class LossTerm:
    adapter_name: str | None  # The trial's adapter; None trains the model itself
    rows: Sequence[EncodedRow]
    weight: float = 1.0  # Of the mean loss in the step's loss
    kl_weight: float = 0.0  # Of the mean KL to the base in the step's loss
    is_replay: bool = False

    @property
    def num_labels(self) -> int:
        return sum(sum(row.is_label) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Replay:
    rows: Sequence[EncodedRow]
    sampler: ReplaySampler


def loss_terms(
    adapter_name: str | None,
    own: Sequence[EncodedRow],
    replayed: Sequence[EncodedRow] | None,
    kl_weight: float,
) -> list[LossTerm]:
    """A step's rows by how they count: own, then replayed ones; None is without replay."""
    if replayed is None:
        return [LossTerm(adapter_name, own, 1.0, kl_weight)]
    if not replayed:
        return [LossTerm(adapter_name, own)]
    share = len(replayed) / (len(own) + len(replayed))
    return [
        LossTerm(adapter_name, own, 1 - share),
        LossTerm(adapter_name, replayed, share, kl_weight, is_replay=True),
    ]


class _KlDivergences(torch.autograd.Function):
    """KL(base || tuned) at every position, one block of logits at a time. As in ``train/loss.py``,
    the same pass computes the gradient, p_tuned - p_base, in their dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, base_logits: Tensor) -> Tensor:
        divergences = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grads = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
        for start in range(0, len(logits), rows):
            span = slice(start, start + rows)
            tuned = torch.log_softmax(logits[span].float(), 1)
            base = torch.log_softmax(base_logits[span].float(), 1)
            probabilities = base.exp()
            divergences[span] = (probabilities * (base - tuned)).sum(1)
            if grads is not None:
                grads[span] = tuned.exp_().sub_(probabilities)
        if grads is not None:
            ctx.save_for_backward(grads)
        return divergences

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the tuned logits alone: the base is frozen."""
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None


def kl_divergences(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base || tuned) of every position, (M,) float32, nats, from logits (M, vocabulary)."""
    divergences: Tensor = _KlDivergences.apply(logits, base_logits)  # type: ignore[no-untyped-call]
    return divergences


@torch.no_grad()
def base_logits_of(base: Base, parts: Sequence[Sequence[EncodedRow]]) -> list[Tensor]:
    """Logits of the bare base at the labels of each part's rows, (labels, vocabulary).

    A row of several parts runs once.
    """
    distinct = {id(row): row for rows in parts for row in rows}
    keeps = {key: row.label_positions for key, row in distinct.items()}
    batch = [Row(row.input_ids, keeps[key]) for key, row in distinct.items()]
    logits = base.logits(RowBatch.of(batch, base.device))
    starts, place = {}, 0
    for key, keep in keeps.items():
        starts[key] = place
        place += len(keep)
    spans = [
        [slice(starts[id(row)], starts[id(row)] + len(keeps[id(row)])) for row in rows]
        for rows in parts
    ]
    return [torch.cat([logits[span] for span in of_part]) for of_part in spans]


@dataclass(slots=True)
class EarlyStop:
    """When a trial stops, and its best weights so far. Only a score above all earlier ones is
    better: of equal scores the first counts, since its weights moved least."""

    patience: int
    best_score: float = -math.inf
    best_step: int = 0
    observed_step: int = 0  # Of the last point
    waited: int = 0  # Points since the best one
    weights: list[Tensor] = field(default_factory=list)

    def observe(self, step: int, score: float, parameters: Sequence[nn.Parameter]) -> None:
        """Observe the in-domain validation score after ``step`` steps; once per step."""
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
        if counters:
            for name, value in counters.items():
                setattr(self, name, value)
            self.weights = weights
