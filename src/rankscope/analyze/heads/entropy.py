"""Where each head looks: the entropy of its attention weights.

    -sum_j a_j ln a_j / ln(t + 1)        at position t, from 0, which sees t + 1 tokens

averaged over positions from 1 on: 0 looks at one token, 1 at all alike. Under a sliding window of
w tokens a position sees min(t + 1, w). The weights are made explicit here, from the queries and
keys of a forward pass, since the attention that models run keeps none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trees import Tree, TreeBatch, cut
from rankscope.models.attention.varlen import window_mask
from rankscope.models.base import Base

QUERIES_AT_ONCE = 256
"""Queries of one row whose weights exist at the same time."""


@dataclass(slots=True)
class EntropySums:
    """Sums over positions: by layer, (H,) float64, and how many positions."""

    total: list[Tensor]
    positions: int = 0

    def mean(self) -> list[tuple[float | None, ...]]:
        """By layer, the mean of every head; None where there is no position."""
        if not self.positions:
            return [(None,) * len(layer) for layer in self.total]
        return [tuple((layer / self.positions).tolist()) for layer in self.total]


def normalized_entropy(weights: Tensor, num_visible: Tensor) -> Tensor:
    """-sum a ln a / ln(visible): ``weights`` (..., Q, keys), ``num_visible`` (Q,) -> (..., Q)."""
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    return entropy / num_visible.to(weights).log()


def row_entropy(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """Of one row, summed over its positions from 1 on: q (H, T, D), k (K, T, D) -> (H,) float64."""
    heads, length, _ = q.shape
    keys = k.float().repeat_interleave(heads // k.shape[0], 0)
    width = length if window is None else min(window, length)
    total = torch.zeros(heads, dtype=torch.float64)
    for first in range(1, length, QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, length)
        scores = scale * (q[:, first:last].float() @ keys[:, :last].transpose(1, 2))
        visible = window_mask(last, width, q.device)[first:last]
        weights = torch.softmax(scores.masked_fill(~visible, -math.inf), -1)
        total += normalized_entropy(weights, visible.sum(1)).sum(1).cpu().double()
    return total


def attention_entropy(
    base: Base,
    layout: HeadLayout,
    trees: Sequence[Tree],
    adapter_name: str | None,
    batch_tokens: int,
) -> list[tuple[float | None, ...]]:
    """Mean entropy of every head on the right answers of some items, prompts included.

    Args:
        base: the base, with the adapter attached or the method on it.
        layout: of its heads.
        trees: the items.
        adapter_name: the adapter; None is the base, or whatever is on it.
        batch_tokens: most tokens of a pass, but at least one item.

    Returns:
        By layer, by query head, from 0 to 1.
    """
    rows = [tree.gold_row() for tree in trees]
    sums = EntropySums([torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layout])
    was_training, base.multi_lora.training = base.multi_lora.training, False
    try:
        with torch.inference_mode():
            for members in cut(rows, batch_tokens, batch_tokens):
                batch = TreeBatch.of([rows[i] for i in members], base.device)
                lengths = list(batch.batch.lengths)

                def look(
                    layer: int,
                    q: Tensor,
                    k: Tensor,
                    scale: float,
                    window: int | None,
                    lengths: list[int] = lengths,
                ) -> None:
                    pairs = zip(q.split(lengths, 1), k.split(lengths, 1), strict=True)
                    for queries, keys in pairs:
                        sums.total[layer] += row_entropy(queries, keys, scale, window)

                sums.positions += sum(lengths) - len(lengths)
                nothing = replace(batch.for_adapter(adapter_name), keep=batch.batch.keep[:0])
                base.logits(nothing, plan=replace(batch.plan, probe=look))
    finally:
        base.multi_lora.training = was_training
    return sums.mean()
