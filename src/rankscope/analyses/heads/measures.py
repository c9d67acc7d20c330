"""Importance of every head to the loss, to first order, and how widely it attends.

Importance, from one backward pass:

    I_h = E_x |z_h . dL(x)/dz_h|        (Michel et al., 1905.10650, equation 2)

z is the input of o_proj, cut into heads. The product is summed over the tokens and the head dim of
an example before the absolute value; the mean is over examples. L is the negative log-probability
of the right answer, nats. z_h . dL/dz_h is the slope of L when z_h is scaled, so removing the head
changes L by about its negative: to first order only, which fails where the loss is saturated.

A key/value head serves several query heads. Their *signed* values are summed first, since removing
it removes them together.

Normalized entropy of the attention weights:

    -sum_j a_j ln a_j / ln(t + 1)        at position t, from 0, which sees t + 1 tokens

averaged over positions from 1 on: 0 attends to one token, 1 to all equally. With a sliding window
of w tokens a position sees min(t + 1, w). The fused attention that models run keeps no weights, so
they are recomputed here from the queries and keys of a forward pass.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rankscope.analyses.heads.layout import AttentionLayer, HeadModel
from rankscope.evaluate.token_trees import TokenTree, TokenTreeBatch, cut_batches, logprobs_at
from rankscope.models.attention.varlen import window_mask
from rankscope.models.base import RowBatch


def raw_importance(signed: Tensor, num_heads: int) -> Tensor:
    """E_x |.| of a layer's heads, nats: all (H,), or of key/value heads (K,), from (X examples, H)
    signed values, which are summed within a head first."""
    return signed.view(len(signed), num_heads, -1).sum(2).abs().mean(0)


def unit_length(values: Tensor) -> Tensor:
    """Divided by their l2 norm; zeros if all are zero."""
    norm = values.norm()
    return values / norm if float(norm) > 0 else torch.zeros_like(values)


def head_importance(model: HeadModel, trees: Sequence[TokenTree]) -> tuple[Tensor, ...]:
    """Signed first-order values by layer, (X examples, H): z_h . dL/dz_h in nats."""
    rows = [tree.gold_row() for tree in trees]
    signed = tuple(torch.zeros(len(rows), layer.num_heads) for layer in model.layout)
    with model.base.multi_lora.dropout_off():
        sizes = [row.size for row in rows]
        for members in cut_batches(sizes, model.batch_tokens, model.base.record.vocab_size):
            batch = TokenTreeBatch.of([rows[i] for i in members], model.base.device)
            with torch.enable_grad(), _gradient_hooks(model, batch.rows) as (first_z, products):
                logits = model.logits(batch.rows, model.plan(batch.rows))
                logprobs = logprobs_at(logits, batch.sources, batch.targets)
                # Ask for the gradient of the first layer's z alone: no parameter gets one.
                torch.autograd.grad(-logprobs.sum(), first_z)
            for layer, values in zip(signed, products, strict=True):
                layer[members] = values
    return signed


@contextmanager
def _gradient_hooks(
    model: HeadModel, batch: RowBatch
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """While inside, a backward pass collects z_h . dL/dz_h: by layer, (rows, H). Yields the first
    layer's z, at which the backward pass ends, and the products."""
    first_z: list[Tensor] = []
    products = [torch.zeros(0)] * len(model.layout)
    num_rows = len(batch.lengths)
    lengths = torch.tensor(batch.lengths)
    row_of_token = torch.repeat_interleave(torch.arange(num_rows), lengths).to(model.base.device)

    def watch(layer: AttentionLayer, z: Tensor) -> Tensor:
        if layer.index == 0:  # the backward pass needs nothing before it
            z = z.detach().requires_grad_()
            first_z.append(z)

        def collect(grad: Tensor) -> None:
            product = z.detach().float() * grad.float()
            product = product.view(-1, layer.num_heads, layer.head_dim).sum(2)
            sums = product.new_zeros(num_rows, layer.num_heads)
            products[layer.index] = sums.index_add_(0, row_of_token, product).cpu()

        z.register_hook(collect)
        return z

    with model.changed_inputs({layer.index: partial(watch, layer) for layer in model.layout}):
        yield first_z, products


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
