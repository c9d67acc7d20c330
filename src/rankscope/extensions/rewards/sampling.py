"""Random draws of tokens.

Each sequence has its own uniform numbers, so its draws do not depend on the sequences beside it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rankscope.errors import NotFiniteError
from rankscope.evaluate.continuous_batching import Generation, RunningBatch

LARGEST_LOGIT = 1e4  # In place of an infinite logit
BLOCK = 256  # Tokens whose probabilities are added up on the device


@dataclass(slots=True)
class SampledGeneration(Generation):
    """A sequence whose tokens are drawn; its ``ids`` keep its end token."""

    draws: random.Random = field(default_factory=random.Random)
    entropy: float = 0.0  # Sum over its tokens' distributions, nats, see :func:`drawing_at`

    def accept(self, token: int, batch: RunningBatch) -> None:
        self.ids.append(token)
        is_end = token in batch.limits.stop_ids
        self.stopped = is_end or batch.ends_in_stop_string(self.ids)


def draw(logits: Tensor, sequences: Sequence[SampledGeneration]) -> Tensor:
    """Draw a token for each row, (R,), from (R, V) logits.

    It is the first whose cumulative probability exceeds the row's next uniform number. Only the
    sums of blocks of tokens, and the block that holds the token, leave the device. They are added
    up in float64, which not every device has.
    """
    uniform = torch.tensor([[row.draws.random()] for row in sequences], dtype=torch.float64)
    probabilities = F.pad(logits.float().softmax(dim=-1), (0, -logits.shape[-1] % BLOCK))
    blocks = probabilities.unflatten(-1, (-1, BLOCK))  # (R, V / BLOCK, BLOCK)
    sums = blocks.sum(dim=-1).cpu().double()
    if not sums.isfinite().all():
        raise NotFiniteError(
            "sampling",
            "probabilities of the next token that are not finite",
            "finite ones",
            "set dtype: float32 or use another model",
        )
    block, rest = _first_beyond(sums, uniform * sums.sum(dim=-1, keepdim=True))
    rows = torch.arange(len(blocks), device=blocks.device)
    token, _ = _first_beyond(blocks[rows, block.squeeze(1).to(blocks.device)].cpu().double(), rest)
    return (block * BLOCK + token).squeeze(1)


def _first_beyond(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Find each row's first weight with which the sum exceeds the target, (R, N) and (R, 1)
    float64.

    Returns:
        The weight's index, and how far the target exceeds the sum of the weights before it.
    """
    cumulative = weights.cumsum(dim=-1)
    below_all = cumulative[:, -1:] * (1 - torch.finfo(torch.float64).eps)
    target = torch.minimum(target, below_all)
    index = torch.searchsorted(cumulative, target, right=True)
    return index, target - (cumulative - weights).gather(1, index)


def drawing_at(temperature: float) -> Callable[[Tensor, Sequence[SampledGeneration]], Tensor]:
    """Make a :func:`draw` at a temperature, which also adds up the entropies of the
    distributions."""

    def choose(logits: Tensor, sequences: Sequence[SampledGeneration]) -> Tensor:
        # A diverged model still draws something: the loss of its answers then shows it, and the
        # other models of its group continue.
        logits = logits.float().nan_to_num(0.0, LARGEST_LOGIT, -LARGEST_LOGIT) / temperature
        logprobs = logits.log_softmax(dim=-1)
        entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        for sequence, entropy in zip(sequences, entropies.tolist(), strict=True):
            if not sequence.is_finished:
                sequence.entropy += entropy
        return draw(logits, sequences)

    return choose
