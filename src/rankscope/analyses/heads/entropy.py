"""How widely each head attends: the normalized entropy of its attention weights.

    -sum_j a_j ln a_j / ln(t + 1)        at position t, from 0, which sees t + 1 tokens

averaged over positions from 1 on: 0 attends to one token, 1 to all equally. With a sliding window
of w tokens a position sees min(t + 1, w). The fused attention that models run keeps no weights, so
they are recomputed here from the queries and keys of a forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rankscope.analyses.heads.layout import HeadModel
from rankscope.evaluate.token_trees import TokenTree, TokenTreeBatch, cut_batches
from rankscope.models.attention.varlen import window_mask

QUERIES_AT_ONCE = 256  # Queries of one row whose weights exist at the same time


def normalized_entropy(weights: Tensor, num_visible: Tensor) -> Tensor:
    """-sum a ln a / ln(visible): ``weights`` (..., Q, keys), ``num_visible`` (Q,) -> (..., Q)."""
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    return entropy / num_visible.to(weights).log()


def row_entropy(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """Entropy summed over positions 1 to T - 1 of one row: q (H, T, D), k (K, T, D) -> (H,)."""
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
    model: HeadModel, trees: Sequence[TokenTree]
) -> list[tuple[float | None, ...]]:
    """Mean entropy on the prompts and right answers of some items: by layer and query head; None if
    no position sees two tokens."""
    rows = [tree.gold_row() for tree in trees]
    sums = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in model.layout]
    num_positions = 0
    with model.base.multi_lora.dropout_off(), torch.inference_mode():
        sizes = [row.size for row in rows]
        batches = cut_batches(sizes, model.batch_tokens, vocab_size=1)  # no logits to limit
        for members in batches:
            trees_here = [rows[i] for i in members]
            batch = TokenTreeBatch.of(trees_here, model.base.device).rows.without_logits()
            lengths = list(batch.lengths)

            def add_layer(
                layer: int,
                q: Tensor,
                k: Tensor,
                scale: float,
                window: int | None,
                lengths: list[int] = lengths,
            ) -> None:
                pairs = zip(q.split(lengths, 1), k.split(lengths, 1), strict=True)
                for queries, keys in pairs:
                    sums[layer] += row_entropy(queries, keys, scale, window)

            num_positions += sum(lengths) - len(lengths)
            model.logits(batch, replace(model.plan(batch), probe=add_layer))
    if not num_positions:
        return [(None,) * len(layer) for layer in sums]
    return [tuple((layer / num_positions).tolist()) for layer in sums]
