"""Measures of a model's heads: importance to the loss, spread of attention, size of change.

Importance, from one backward pass:

    I_h = E_x |z_h . dL(x)/dz_h|        (Michel et al., 1905.10650, equation 2)

z is the input of o_proj, cut into heads. The product is summed over the tokens and the head dim of
an example before the absolute value; the mean is over examples. L is the negative log-probability
of the right answer, nats. z_h . dL/dz_h is the slope of L when z_h is scaled, so removing the head
changes L by about its negative. That is a first-order estimate, which fails if the loss is
saturated.

A key/value head serves several query heads. Their *signed* values are summed first, because
removing it removes them together.

Normalized entropy of the attention weights:

    -sum_j a_j ln a_j / ln(t + 1)        at position t, from 0, which sees t + 1 tokens

It is averaged over positions from 1 on: 0 attends to one token, 1 to all equally. With a sliding
window of w tokens a position sees min(t + 1, w). The fused attention of the models keeps no
weights, so they are recomputed here from the queries and keys of a forward pass.

Change of each head's slice of the attention matrices:

    query head h of q_proj (rows h):       |dW_h|_F^2 = tr[(B_h^T B_h)(A A^T)]
    key/value head of k_proj, v_proj:      the same
    head h of o_proj (columns h):          |dW_h|_F^2 = tr[(B^T B)(A_h A_h^T)]

Here dW = B A with the scaling in B, so dW is never formed for LoRA (docs/inspect.md, "Attention
heads"). DoRA's magnitude and full fine-tuning give a dense dW, which is cut into slices. Each value
is also given relative to |W0_h|_F.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rankscope.evaluate.token_trees import (
    Floats,
    TokenTree,
    TokenTreeBatch,
    cut_batches,
    logprobs_at,
    most_kept,
)
from rankscope.extensions.heads.ablation import ablate, single_heads, whole_layers
from rankscope.extensions.heads.layout import PROJECTIONS, AttentionLayer, HeadLayout, HeadModel
from rankscope.extensions.heads.record import HeadAblation, HeadChange, LayerHeads
from rankscope.extensions.heads.tasks import HeadTask
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Base, RowBatch
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.quantize import dense_weight


def raw_importance(signed: Tensor, num_heads: int) -> Tensor:
    """Return E_x |.| of a layer's heads, nats: all (H,), or those of key/value heads (K,).

    The signed values (X examples, H) are summed within a head first.
    """
    return signed.view(len(signed), num_heads, -1).sum(2).abs().mean(0)


def unit_length(values: Tensor) -> Tensor:
    """Divide values by their l2 norm; zeros stay zeros."""
    norm = values.norm()
    return values / norm if float(norm) > 0 else torch.zeros_like(values)


def head_importance(model: HeadModel, trees: Sequence[TokenTree]) -> tuple[Tensor, ...]:
    """Return signed first-order values by layer, (X examples, H): z_h . dL/dz_h in nats."""
    rows = [tree.gold_row() for tree in trees]
    signed = tuple(torch.zeros(len(rows), layer.num_heads) for layer in model.layout)
    with model.base.multi_lora.dropout_off():
        sizes = [row.size for row in rows]
        max_kept = most_kept(model.base.record.vocab_size, model.base.device)
        for members in cut_batches(sizes, model.batch_tokens, max_kept):
            batch = TokenTreeBatch.of([rows[i] for i in members], model.base.device)
            with torch.enable_grad(), _gradient_hooks(model, batch.rows) as (first_z, products):
                logits = model.logits(batch.rows)
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
    """Collect z_h . dL/dz_h of a backward pass inside, by layer, (rows, H).

    Yields the first layer's z, at which the backward pass ends, and the products.
    """
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


def row_entropy(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """Sum the entropy over positions 1 to T - 1 of one row: q (H, T, D), k (K, T, D) -> (H,)."""
    heads, length, _ = q.shape
    keys = k.float().repeat_interleave(heads // k.shape[0], 0)
    width = length if window is None else min(window, length)
    total = torch.zeros(heads, dtype=torch.float64)
    for first in range(1, length, QUERIES_AT_ONCE):
        last = min(first + QUERIES_AT_ONCE, length)
        scores = scale * (q[:, first:last].float() @ keys[:, :last].transpose(1, 2))
        places = torch.arange(last, device=q.device)
        distance = places[first:, None] - places
        visible = (distance >= 0) & (distance < width)
        weights = torch.softmax(scores.masked_fill(~visible, -math.inf), -1)
        entropy = torch.special.entr(weights).sum(-1) / visible.sum(1).to(weights).log()
        total += entropy.sum(1).cpu().double()
    return total


def attention_entropy(
    model: HeadModel, trees: Sequence[TokenTree]
) -> list[tuple[float | None, ...]]:
    """Return the mean entropy on prompts and right answers of some items, by layer and query head.

    It is None if no position sees two tokens.
    """
    rows = [tree.gold_row() for tree in trees]
    sums = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in model.layout]
    num_positions = 0
    with model.base.multi_lora.dropout_off(), torch.inference_mode():
        sizes = [row.size for row in rows]
        no_limit = sum(kept for _, kept in sizes)  # no logits
        for members in cut_batches(sizes, model.batch_tokens, no_limit):
            trees_here = [rows[i] for i in members]
            batch = TokenTreeBatch.of(trees_here, model.base.device).rows
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
            plan = AttentionPlan.of(lengths, model.base.device)
            model.logits(replace(batch, keep=batch.keep[:0]), replace(plan, probe=add_layer))
    if not num_positions:
        return [(None,) * len(layer) for layer in sums]
    return [tuple((layer / num_positions).tolist()) for layer in sums]


# --- of one trial ------------------------------------------------------------------------------

Weights = Callable[[str], Tensor]  # Module path -> weight, (out, in)


def head_norms(update: LowRankUpdate | Tensor, num_heads: int, by_columns: bool) -> Tensor:
    """Return |W_h|_F of every head, (heads,) float64, for factors without forming B A.

    Heads are side by side in the rows of a matrix (out, in), or ``by_columns`` (o_proj).
    """
    if isinstance(update, LowRankUpdate):
        a, b = update.A, update.B
        # tr[(B_h^T B_h) M] with M = A A^T sums (B_h M) * B_h: row by row, then head by head.
        squares = ((b.T @ b @ a) * a).sum(0) if by_columns else ((b @ (a @ a.T)) * b).sum(1)
    else:
        squares = to_float64(update).square().sum(0 if by_columns else 1)
    return squares.view(num_heads, -1).sum(1).clamp_(min=0).sqrt()


def head_changes(
    layout: HeadLayout,
    names: Iterable[str],
    base: Weights,
    update_of: Callable[[str, Tensor], LowRankUpdate | Tensor],
) -> tuple[HeadChange, ...]:
    """Return the changes of the attention matrices among ``names``, layer by layer.

    ``update_of`` returns a module's update, given its W0.
    """
    chosen, changes = set(names), []
    for layer in layout:
        for module in PROJECTIONS:
            name, heads = layer.projection(module), layer.heads_of(module)
            if name not in chosen:
                continue
            weight = base(name)
            moved = head_norms(update_of(name, weight), heads, module == "o_proj").cpu()
            before = head_norms(weight, heads, module == "o_proj").cpu()
            relative = torch.where(before > 0, moved / before, torch.zeros_like(before))
            changes.append(
                HeadChange(
                    layer=layer.index,
                    module=module,
                    frobenius=tuple(moved.tolist()),
                    relative=tuple(relative.tolist()),
                )
            )
    return tuple(changes)


def update_to(tuned: Weights) -> Callable[[str, Tensor], Tensor]:
    """Make a function that returns updates from another full set of weights."""
    return lambda name, before: tuned(name).to(before.device, torch.float32) - before.float()


_T = TypeVar("_T")
Ablated = tuple[list[Floats], list[list[Floats]]]  # Scores of the intact model, by ablation
Measurements = tuple[tuple[LayerHeads, ...], list[Ablated]]
"""Results of one model: its heads by layer, and ablations by task."""


def measure_heads(model: HeadModel, task: HeadTask, ablated_on: Sequence[HeadTask]) -> Measurements:
    """Measure importance and entropy of every head on ``task``.

    Every head, and every layer, is also ablated on each of ``ablated_on``.
    """
    signed = head_importance(model, task.trees)
    entropy = attention_entropy(model, task.trees)
    layout = model.layout

    def unit(layer: AttentionLayer, num_heads: int) -> tuple[float, ...]:
        return tuple(unit_length(raw_importance(signed[layer.index], num_heads)).tolist())

    layers = tuple(
        LayerHeads(
            layer=layer.index,
            importance=unit(layer, layer.num_heads),
            group_importance=unit(layer, layer.num_kv_heads),
            entropy=entropy[layer.index],
        )
        for layer in layout
    )
    ablations = [*single_heads(layout), *whole_layers(layout)]
    return layers, [ablate(model, other.trees, ablations) for other in ablated_on]


def ablation_record(
    layout: HeadLayout, task: HeadTask, base: Ablated, tuned: Ablated
) -> HeadAblation:
    """Record the effect of removing each head, then each layer, on the base and a tuned model."""

    def by_layer(values: Sequence[_T]) -> tuple[tuple[_T, ...], ...]:
        remaining = iter(values)
        return tuple(tuple(islice(remaining, layer.num_heads)) for layer in layout)

    def changes(result: Ablated) -> tuple[list[float], list[Floats]]:
        intact, ablated = result
        score, gold = task.scores(intact), task.gold(intact)
        return (
            [float((task.scores(v) - score).mean()) for v in ablated],
            [task.gold(v) - gold for v in ablated],
        )

    base_score, base_gold = changes(base)
    tuned_score, tuned_gold = changes(tuned)
    heads, n = layout.num_heads, len(task.trees)
    pairs = zip(base_gold[:heads], tuned_gold[:heads], strict=True)
    errors = [float((t - b).std(ddof=1) / np.sqrt(n)) if n > 1 else None for b, t in pairs]
    base_mean, tuned_mean = ([float(d.mean()) for d in gold] for gold in (base_gold, tuned_gold))
    return HeadAblation(
        task=task.name,
        items=n,
        metric=task.metric,
        base_score=float(task.scores(base[0]).mean()),
        tuned_score=float(task.scores(tuned[0]).mean()),
        base_change=by_layer(base_score),
        tuned_change=by_layer(tuned_score),
        base_gold_change=by_layer(base_mean),
        tuned_gold_change=by_layer(tuned_mean),
        gold_difference_error=by_layer(errors),
        base_layer_gold_change=tuple(base_mean[heads:]),
        tuned_layer_gold_change=tuple(tuned_mean[heads:]),
    )


def trial_changes(
    model: HeadModel, base: Base, stored_base: Weights | None = None
) -> tuple[HeadChange, ...]:
    """Measure how far training moved each head; W0 is from ``stored_base``, or as loaded."""
    layout, tuned, linears = model.layout, model.base, base.linears()

    def loaded_base(name: str) -> Tensor:
        return dense_weight(linears[name])

    if (tuner := tuned.multi_lora.injected_tuner) is not None:
        return head_changes(layout, tuner.mergeable(), loaded_base, update_to(tuner.merged_weight))
    before = stored_base or loaded_base
    if model.adapter_name is not None:
        adapter = tuned.multi_lora.adapters[model.adapter_name]
        update = partial(LoraMethod.of(adapter.method).update, adapter)
        return head_changes(layout, adapter.a, before, update)
    # Read a full model from its file: in memory it may be bfloat16, which rounds by up to 1 part in
    # 512. Training may have changed it as little.
    names = [layer.projection(module) for layer in layout for module in PROJECTIONS]
    return head_changes(layout, names, before, update_to(CheckpointReader(tuned.folder).weight))


def added_cost(ablation: HeadAblation) -> tuple[tuple[float, ...], ...]:
    """Return c_tuned - c_base, nats per item, by layer and head: the worth of a head from training.

    Removing a head costs a model c = -(change of the gold answer's log-probability). Costs do not
    add up over heads, and small ones are noise: see ``HeadAblation.gold_difference_error``.
    """
    layers = zip(ablation.base_gold_change, ablation.tuned_gold_change, strict=True)
    return tuple(tuple(b - t for b, t in zip(*layer, strict=True)) for layer in layers)


def lost_elsewhere(others: Sequence[HeadAblation]) -> tuple[tuple[float, ...], ...]:
    """Return c_base - c_tuned, mean over tasks that were not trained, by layer and head."""
    layers = zip(*map(added_cost, others), strict=True)
    return tuple(tuple(-fmean(costs) for costs in zip(*layer, strict=True)) for layer in layers)
