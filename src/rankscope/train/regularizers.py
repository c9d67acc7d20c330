"""What holds a trial back from forgetting while it trains: replayed rows, KL to the base, an early
stop.

**Replay.** In every optimizer step general rows stand beside the trial's own, which keep their
order and their steps: a share q of all rows seen is replayed, q / (1 - q) of each step's own on
top. Each kind counts in the loss by its rows, and inside of a kind every labelled token alike, so
that long general texts do not drown short answers:

    loss = (1 - p) mean over own labels + p mean over replayed labels,   p = replayed rows / rows

**KL to the base.** weight x mean over labelled tokens of KL(base || tuned), in nats, added to that.
It is taken at the labels of the replayed rows where the trial has them, where the base is to be
kept, and at those of its own rows otherwise. Price: one forward pass of the frozen base, without
gradient, over the rows concerned; trials that see the same row in the same forward pass share it.
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
    """Rows of one trial's optimizer step that are averaged together."""

    state: int
    """The trial's place among those of the step."""
    rows: Sequence[EncodedRow]
    weight: float = 1.0
    """Of their mean in the step's loss."""
    kl_weight: float = 0.0
    """Of their KL to the base in the step's loss."""
    is_replay: bool = False

    @property
    def num_labels(self) -> int:
        """Labelled tokens, over which losses are averaged."""
        return sum(sum(row.is_label) for row in self.rows)


@dataclass(slots=True)
class Replayed:
    """General rows of one trial, and which of them stand in which step."""

    rows: Sequence[EncodedRow]
    order: ReplaySampler


def loss_terms_of(
    state: int,
    own: Sequence[EncodedRow],
    replayed: Sequence[EncodedRow],
    kl_weight: float,
    has_replay: bool,
) -> list[LossTerm]:
    """A step's rows as loss_terms: the trial's own, then those replayed, if any.

    has_replay: the trial has general rows, though perhaps none in this step.
    """
    share = len(replayed) / (len(own) + len(replayed))
    own_kl = 0.0 if has_replay else kl_weight
    loss_terms = [LossTerm(state, own, 1 - share if share else 1.0, own_kl)]
    if replayed:
        loss_terms.append(LossTerm(state, replayed, share, kl_weight, is_replay=True))
    return loss_terms


class Divergences(torch.autograd.Function):
    """KL(base || tuned) at every position, a block of rows of the logits at a time.

    As in ``train/loss.py`` the gradient, p_tuned - p_base, is made in the same walk, in the dtype
    of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, base_logits: Tensor) -> Tensor:
        """(M, vocabulary) twice -> (M,) float32."""
        found = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grads = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
        for start in range(0, len(logits), rows):
            span = slice(start, start + rows)
            tuned = torch.log_softmax(logits[span].float(), 1)
            base = torch.log_softmax(base_logits[span].float(), 1)
            probabilities = base.exp()
            found[span] = (probabilities * (base - tuned)).sum(1)
            if grads is not None:
                grads[span] = tuned.exp_().sub_(probabilities)
        if grads is not None:
            ctx.save_for_backward(grads)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the tuned logits alone: the base is frozen."""
        (found,) = ctx.saved_tensors
        return found * grads[0][:, None].to(found.dtype), None


def divergences(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base || tuned) of every position, (M,) float32, nats, from logits (M, vocabulary)."""
    found: Tensor = Divergences.apply(logits, base_logits)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def base_logits_of(frozen: Base, parts: Sequence[Sequence[EncodedRow]]) -> list[Tensor]:
    """What the bare base says at the labels of each part's rows, (labels, vocabulary).

    A row that stands in several parts runs once. Call it before the pass that it belongs to: the
    group remembers the rows of its last pass, for recomputing.
    """
    distinct = {id(row): row for rows in parts for row in rows}
    keeps = {key: label_positions(row) for key, row in distinct.items()}
    batch = [Row(row.input_ids, keeps[key]) for key, row in distinct.items()]
    logits = frozen.logits(RowBatch.of(batch, frozen.device))
    starts, place = {}, 0
    for key, keep in keeps.items():
        starts[key] = place
        place += len(keep)
    spans = [
        [slice(starts[id(row)], starts[id(row)] + len(keeps[id(row)])) for row in rows]
        for rows in parts
    ]
    return [torch.cat([logits[span] for span in of_part]) for of_part in spans]


def label_positions(row: EncodedRow) -> list[int]:
    """Positions whose logits predict a labelled token: those right before the labels."""
    return [t - 1 for t, labelled in enumerate(row.is_label) if labelled]


@dataclass(slots=True)
class EarlyStop:
    """When a trial stops, and the best weights it had until then.

    A point is better only if its score is higher than every one before; of equal scores the first
    counts, whose weights moved least.
    """

    patience: int
    best_score: float = -math.inf
    best_step: int = 0
    observed_step: int = 0
    """Of the last point."""
    waited: int = 0
    """Points since the best one."""
    weights: list[Tensor] = field(default_factory=list)

    def observe(self, step: int, score: float, parameters: Sequence[nn.Parameter]) -> None:
        """Take in the in-domain score after ``step`` steps, validation split; each point once."""
        if step <= self.observed_step:
            return
        self.observed_step = step
        self.waited += 1
        if score > self.best_score:
            self.best_score, self.best_step, self.waited = score, step, 0
            self.weights = [parameter.detach().clone() for parameter in parameters]

    @property
    def stopped_after(self) -> int | None:
        """The step after which the trial ended; None while it goes on."""
        return self.observed_step if self.waited >= self.patience else None

    @torch.no_grad()
    def restore_best(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give the parameters the values they had at the best point, if there was any."""
        for parameter, best in zip(parameters, self.weights, strict=bool(self.weights)):
            parameter.copy_(best)

    def counters(self) -> dict[str, float]:
        """The state but for the weights, JSON-compatible."""
        if not self.observed_step:
            return {}
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "observed_step": self.observed_step,
            "waited": self.waited,
        }

    def restore(self, counters: dict[str, float], weights: list[Tensor]) -> None:
        """Set the state to what :meth:`counters` gave."""
        if counters:
            self.best_score = counters["best_score"]
            self.best_step = int(counters["best_step"])
            self.observed_step = int(counters["observed_step"])
            self.waited = int(counters["waited"])
            self.weights = weights
