"""Rows that the base writes by itself at temperature 1."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankscope.data.self_replay import RowsToSample
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import (
    Generation,
    GenerationLimits,
    RunningBatch,
    StopStrings,
)
from rankscope.models.base import Base


@dataclass(slots=True)
class SampledRow(Generation):
    """A row whose tokens are drawn; its ``ids`` keep its end tokens."""

    ends_left: int = 1
    draws: random.Random = field(default_factory=random.Random)
    """Uniform numbers of its own: what is drawn does not depend on the rows beside it."""

    def accept(self, token: int, stops: StopStrings) -> None:
        self.ids.append(token)
        self.ends_left -= token in stops.limits.stop_ids
        self.stopped = self.ends_left == 0


def sample_rows(base: Base, rows: RowsToSample, batch_tokens: int) -> list[list[int]]:
    """What the base writes in each row after the prompt, token ids."""
    limits = GenerationLimits(
        max_new_tokens=rows.max_length - len(rows.prompt),
        context=min(rows.max_length, context_length(base.model.config) or rows.max_length),
        batch_tokens=batch_tokens,
        stop_ids=rows.stop_ids,
    )
    most = limits.context - len(rows.prompt)
    sampled = [
        SampledRow(
            None,
            rows.prompt,
            most,
            ends_left=rows.num_ends,
            draws=random.Random(f"self_replay/{rows.seed}/{index}"),
        )
        for index in range(len(rows.rows))
    ]
    with torch.inference_mode():
        RunningBatch(base, limits, draw).run(deque(sampled))
    return [row.ids for row in sampled]


def draw(logits: Tensor, sequences: Sequence[SampledRow]) -> Tensor:
    """A token for each row, (R,): the first whose cumulative probability exceeds the row's next
    uniform number. (R, V) logits."""
    uniform = torch.tensor([[row.draws.random()] for row in sequences], dtype=torch.float64)
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1).cpu()
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return tokens.squeeze(1).clamp(max=logits.shape[-1] - 1)
