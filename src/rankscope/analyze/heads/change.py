"""How far training moved each head's slice of the attention matrices.

    Query head h of q_proj (rows h):       |dW_h|_F^2 = s^2 tr[(B_h^T B_h)(A A^T)]
    key/value head of k_proj, v_proj:      the same
    head h of o_proj (columns h):          |dW_h|_F^2 = s^2 tr[(B^T B)(A_h A_h^T)]

so dW is never formed for an adapter (docs/science.md, "Heads"). DoRA's magnitude and full
fine-tuning give a dense dW, whose slices are taken. Each is also given relative to |W0_h|_F.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from rankscope.analyze.heads.layout import PROJECTIONS, AttentionLayer, HeadLayout
from rankscope.analyze.svd_cache import double
from rankscope.errors import IntegrityError
from rankscope.models.lora import Adapter
from rankscope.records import HeadChange

Weights = Callable[[str], Tensor]
"""Module path -> weight, (out, in)."""


def low_rank_heads(A: Tensor, B: Tensor, num_heads: int, by_columns: bool) -> Tensor:
    """|(B A)_h|_F of every head's rows, or columns, without forming B A; (heads,) float64.

    Args:
        A: (r, in). B: (out, r).
        num_heads: heads side by side in the rows of B, or in the columns of A.
        by_columns: heads are columns (o_proj).
    """
    a, b = double(A), double(B)
    # tr[(B_h^T B_h) M] with M = A A^T is the sum of (B_h M) * B_h: row by row, then head by head.
    squares = ((b.T @ b @ a) * a).sum(0) if by_columns else ((b @ (a @ a.T)) * b).sum(1)
    return squares.view(num_heads, -1).sum(1).clamp_(min=0).sqrt()


def dense_heads(weight: Tensor, num_heads: int, by_columns: bool) -> Tensor:
    """|W_h|_F of every head's rows, or columns, of ``weight`` (out, in); (heads,) float64."""
    squares = double(weight).square().sum(0 if by_columns else 1)
    return squares.view(num_heads, -1).sum(1).sqrt()


def adapter_changes(layout: HeadLayout, base: Weights, adapter: Adapter) -> tuple[HeadChange, ...]:
    """Changes of the attention matrices an adapter is on, layer by layer.

    Args:
        layout: of the model.
        base: W0 by module path.
        adapter: LoRA, PiSSA, DoRA or their kin.

    Raises:
        IntegrityError: numbers that are not finite.
    """

    def of_head(layer: AttentionLayer, module: str) -> Tensor:
        name = layer.projection(module)
        heads, by_columns = layer.heads_of(module), module == "o_proj"
        if name in adapter.magnitude:
            delta = adapter.delta(name, base(name).float())
            return dense_heads(delta, heads, by_columns)
        a, b = adapter.factors(name)
        return abs(adapter.scaling) * low_rank_heads(a, b, heads, by_columns)

    return tuple(_changes(layout, adapter.a, base, of_head))


def dense_changes(
    layout: HeadLayout, base: Weights, tuned: Weights, names: Iterable[str]
) -> tuple[HeadChange, ...]:
    """Changes of the attention matrices among ``names``, of two whole sets of weights.

    Raises:
        IntegrityError: numbers that are not finite.
    """

    def of_head(layer: AttentionLayer, module: str) -> Tensor:
        name = layer.projection(module)
        before, after = base(name).float(), tuned(name)
        delta = after.to(before) - before
        return dense_heads(delta, layer.heads_of(module), module == "o_proj")

    return tuple(_changes(layout, set(names), base, of_head))


def _changes(
    layout: HeadLayout,
    names: Iterable[str],
    base: Weights,
    of_head: Callable[[AttentionLayer, str], Tensor],
) -> Iterator[HeadChange]:
    chosen = set(names)
    for layer in layout:
        for module in PROJECTIONS:
            name = layer.projection(module)
            if name not in chosen:
                continue
            moved = of_head(layer, module).cpu()
            whole = dense_heads(base(name), layer.heads_of(module), module == "o_proj").cpu()
            if not bool(torch.isfinite(moved).all() and torch.isfinite(whole).all()):
                raise IntegrityError(f"{name}: a head's weights are NaN or infinite")
            relative = torch.where(whole > 0, moved / whole, torch.zeros_like(whole))
            yield HeadChange(
                layer=layer.index,
                module=module,
                frobenius=tuple(moved.tolist()),
                relative=tuple(relative.tolist()),
            )
