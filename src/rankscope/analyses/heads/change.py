"""How far training moved each head's slice of the attention matrices.

    query head h of q_proj (rows h):       |dW_h|_F^2 = tr[(B_h^T B_h)(A A^T)]
    key/value head of k_proj, v_proj:      the same
    head h of o_proj (columns h):          |dW_h|_F^2 = tr[(B^T B)(A_h A_h^T)]

for dW = B A with the scaling in B, so dW is never formed for LoRA (docs/science.md, "Heads").
DoRA's magnitude and full fine-tuning give a dense dW, which is cut into slices. Each value is also
given relative to |W0_h|_F.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rankscope.analyses.heads.layout import PROJECTIONS, AttentionLayer, HeadLayout
from rankscope.analyses.heads.record import HeadChange
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods import get_lora_method

Weights = Callable[[str], Tensor]  # Module path -> weight, (out, in)


def low_rank_head_norms(A: Tensor, B: Tensor, num_heads: int, by_columns: bool) -> Tensor:
    """|(B A)_h|_F of every head, without forming B A: A (r, in), B (out, r) -> (heads,) float64.
    Heads are side by side in the rows of B, or ``by_columns`` (o_proj) in the columns of A."""
    a, b = to_float64(A), to_float64(B)
    # tr[(B_h^T B_h) M] with M = A A^T is the sum of (B_h M) * B_h: row by row, then head by head.
    squares = ((b.T @ b @ a) * a).sum(0) if by_columns else ((b @ (a @ a.T)) * b).sum(1)
    return squares.view(num_heads, -1).sum(1).clamp_(min=0).sqrt()


def dense_head_norms(weight: Tensor, num_heads: int, by_columns: bool) -> Tensor:
    """|W_h|_F of every head's rows, or columns, of ``weight`` (out, in); (heads,) float64."""
    squares = to_float64(weight).square().sum(0 if by_columns else 1)
    return squares.view(num_heads, -1).sum(1).sqrt()


def adapter_changes(layout: HeadLayout, base: Weights, adapter: Adapter) -> tuple[HeadChange, ...]:
    """Changes of the attention matrices that a LoRA-like adapter is on, layer by layer."""

    def norms(layer: AttentionLayer, module: str) -> Tensor:
        name, heads = layer.projection(module), layer.heads_of(module)
        if not get_lora_method(adapter.method).delta_is_low_rank:
            delta = adapter.delta(name, to_float64(base(name)))
            return dense_head_norms(delta, heads, module == "o_proj")
        update = LowRankUpdate.from_adapter(adapter, name)
        return low_rank_head_norms(update.A, update.B, heads, module == "o_proj")

    return _head_changes(layout, adapter.a, base, norms)


def dense_changes(
    layout: HeadLayout, base: Weights, tuned: Weights, names: Iterable[str]
) -> tuple[HeadChange, ...]:
    """Changes of the attention matrices among ``names``, from two full sets of weights."""

    def norms(layer: AttentionLayer, module: str) -> Tensor:
        name = layer.projection(module)
        before = base(name).float()
        delta = tuned(name).to(before) - before
        return dense_head_norms(delta, layer.heads_of(module), module == "o_proj")

    return _head_changes(layout, names, base, norms)


def _head_changes(
    layout: HeadLayout,
    names: Iterable[str],
    base: Weights,
    norms: Callable[[AttentionLayer, str], Tensor],
) -> tuple[HeadChange, ...]:
    chosen, changes = set(names), []
    for layer in layout:
        for module in PROJECTIONS:
            name = layer.projection(module)
            if name not in chosen:
                continue
            moved = norms(layer, module).cpu()
            before = dense_head_norms(base(name), layer.heads_of(module), module == "o_proj").cpu()
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
