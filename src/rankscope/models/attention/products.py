"""Causal attention of concatenated rows by plain matrix products, forward and backward.

On processors torch's fused attention is slow: 63 ms forward and backward for ten rows of 224 tokens
(9 query and 3 key/value heads of 64, bfloat16, one core), 27 ms for these products. They save three
more things: query heads that share a key/value head become rows of one product, so keys and values
are never repeated; rows of similar length share a product, so little is spent on padding; and long
rows are cut into blocks of queries that skip all later keys.

    R rows of a group, T its longest; N tokens; H query and K key/value heads, G = H / K; D head dim
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankscope.models.attention.decode import additive_mask

MAX_LENGTH = 1024  # Longer rows use the fused attention: it keeps no T x T probabilities

PADDING_PERCENT = 15  # A group's longest row has at most so much more tokens than its shortest

QUERY_BLOCK = 128  # Queries of one product; its keys end at the block's last query


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of similar length, laid out together as (K, R, T)."""

    rows: tuple[int, ...]  # Their indices in the batch
    width: int
    start: int  # First of its R x T places; the groups follow each other

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def stop(self) -> int:
        return self.start + self.num_rows * self.width

    def view(self, x: Tensor, num_kv: int) -> Tensor:
        """(L K, G D), laid-out tokens by key/value head -> the group's (K R, T, G D), a view."""
        rows = x[self.start * num_kv : self.stop * num_kv]
        return rows.view(self.num_rows * num_kv, self.width, -1)

    def spans(self) -> list[tuple[int, int]]:
        """(first query, one after the last) of each block."""
        firsts = range(0, self.width, QUERY_BLOCK)
        return [(first, min(first + QUERY_BLOCK, self.width)) for first in firsts]


@dataclass(frozen=True, slots=True)
class _RowPlaces:
    """Which (token, key/value head) goes to which place of the grouped layout.

    Heads that share a key/value head are neighbors in memory, so one walk over memory lays queries
    out as the products need them.
    """

    spread: Tensor  # (L K,) index into N K; padding points at its row's first token
    gather: Tensor  # (N K,) index into L K
    padding: Tensor  # Places that hold padding


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Rows in groups of similar length; L places in all, padding included."""

    groups: tuple[RowGroup, ...]
    sources: tuple[Tensor, ...]
    """By group, (R, T): index i into the N tokens; for padding -1 - i with i its row's first."""
    num_tokens: int
    device: torch.device
    _places: dict[int, _RowPlaces] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        max_scores: int | None = None,
        num_shared: int = 0,
    ) -> "RowLayout":
        """Lay out consecutive rows of the given lengths (each at least 1).

        ``max_scores`` bounds a group's scores in one head, and ``num_shared`` counts the keys that
        each query sees besides those of its own row.
        """
        counts = torch.tensor(lengths, dtype=torch.int64)
        starts = torch.cumsum(counts, 0) - counts
        groups: list[RowGroup] = []
        sources: list[Tensor] = []
        place = 0
        for rows in group_by_length(lengths, max_scores, num_shared):
            index = torch.tensor(rows)
            width = int(counts[index].max())
            steps = torch.arange(width)
            exists = steps < counts[index, None]
            # Padding repeats its own row's first token: a diverged adapter's NaN must not reach
            # another row, not even multiplied by zero.
            first = starts[index, None]
            sources.append(torch.where(exists, first + steps, -1 - first))
            groups.append(RowGroup(tuple(rows), width, place))
            place = groups[-1].stop
        return cls(tuple(groups), tuple(sources), int(counts.sum()), device)

    def places(self, num_kv: int) -> _RowPlaces:
        if num_kv not in self._places:
            heads = torch.arange(num_kv)[:, None, None]
            ordered, is_valid = [], []
            for source in self.sources:  # (R, T) -> (K, R, T)
                token = torch.where(source < 0, -1 - source, source)
                ordered.append((token * num_kv + heads).reshape(-1))
                is_valid.append((source >= 0).expand(num_kv, -1, -1).reshape(-1))
            spread, exists = torch.cat(ordered), torch.cat(is_valid)
            valid = torch.nonzero(exists).reshape(-1)
            gather = torch.empty(self.num_tokens * num_kv, dtype=torch.int64)
            gather[spread[valid]] = valid
            self._places[num_kv] = _RowPlaces(
                spread.to(self.device),
                gather.to(self.device),
                torch.nonzero(~exists).reshape(-1).to(self.device),
            )
        return self._places[num_kv]

    def mask(self, span: tuple[int, int], per_key: int, dtype: torch.dtype) -> Tensor:
        """(queries x G, last): 0 for visible keys, else minus infinity; computed once."""
        first, last = span
        key = (first, last, per_key, dtype)
        if key not in self._masks:
            queries = torch.arange(first, last, device=self.device)
            keys = torch.arange(last, device=self.device)
            hidden = (keys > queries[:, None]).repeat_interleave(per_key, 0)
            self._masks[key] = additive_mask(hidden, dtype)
        return self._masks[key]


def group_by_length(
    lengths: Sequence[int], max_scores: int | None = None, num_shared: int = 0
) -> list[list[int]]:
    """Row indices in groups of similar length, longest first; see :meth:`RowLayout.of`."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        is_similar = bool(groups) and 100 * longest <= (100 + PADDING_PERCENT) * lengths[row]
        scores = longest * (num_shared + longest)
        most = len(lengths) if max_scores is None else max(1, max_scores // max(1, scores))
        if is_similar and len(groups[-1]) < most:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def attend_in_groups(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    scale: float,
    mask_of: Callable[[RowGroup, tuple[int, int]], Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Attention of q (N, H, D), k and v (N, K, D) within rows: (N, H, D), and the laid-out q, k, v.

    ``mask_of`` gives the mask of a block of queries, and ``attend`` its result from scores
    (K R, queries x G, keys), queries (K R, queries x G, D) and values (K R, keys, D).
    """
    q, k, _ = qkv
    num_kv, size = k.shape[1:]
    per_key = q.shape[1] // num_kv
    places = layout.places(num_kv)
    spread = [x.reshape(len(k) * num_kv, -1).index_select(0, places.spread) for x in qkv]
    out = torch.empty_like(spread[0])
    for group in layout.groups:
        queries, keys, values, result = (group.view(x, num_kv) for x in (*spread, out))
        queries, result = (x.view(len(x), -1, size) for x in (queries, result))
        for span in group.spans():
            rows, last = slice(span[0] * per_key, span[1] * per_key), span[1]
            transposed = keys[:, :last].transpose(1, 2)
            scores = torch.baddbmm(mask_of(group, span), queries[:, rows], transposed, alpha=scale)
            result[:, rows] = attend(scores, queries[:, rows], values[:, :last])
    return out.index_select(0, places.gather).view(q.shape), spread


class _CausalProducts(torch.autograd.Function):
    """softmax(s q k^T) v within each row, causal."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float
    ) -> Tensor:
        saved: list[Tensor] = []

        def attend(scores: Tensor, queries: Tensor, values: Tensor) -> Tensor:
            saved.append(torch.softmax(scores, -1))
            return saved[-1] @ values

        per_key = q.shape[1] // k.shape[1]
        out, spread = attend_in_groups(
            (q, k, v), layout, scale, lambda _, span: layout.mask(span, per_key, q.dtype), attend
        )
        ctx.save_for_backward(*spread, *saved)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        layout: RowLayout = ctx.layout
        saved = ctx.saved_tensors  # read once: gradient checkpointing does not allow a second time
        spread, saved_probabilities = saved[:3], iter(saved[3:])
        size = spread[1].shape[1]
        per_key = spread[0].shape[1] // size
        num_kv = grads[0].shape[1] // per_key
        places = layout.places(num_kv)
        grad = grads[0].reshape(-1, per_key * size).index_select(0, places.spread)
        grad.index_fill_(0, places.padding, 0)
        gradients = [torch.empty_like(spread[0]), *(torch.zeros_like(x) for x in spread[1:])]
        for group in layout.groups:
            queries, keys, values, above, grad_q, grad_k, grad_v = (
                group.view(x, num_kv) for x in (*spread, grad, *gradients)
            )
            queries, above, grad_q = (x.view(len(x), -1, size) for x in (queries, above, grad_q))
            for span in group.spans():
                last, probabilities = span[1], next(saved_probabilities)
                rows = slice(span[0] * per_key, last * per_key)
                part = above[:, rows]
                grad_v[:, :last] += probabilities.transpose(1, 2) @ part
                inner = part @ values[:, :last].transpose(1, 2)
                inner = torch._softmax_backward_data(inner, probabilities, -1, inner.dtype)
                inner *= ctx.scale
                grad_q[:, rows] = inner @ keys[:, :last]
                grad_k[:, :last] += inner.transpose(1, 2) @ queries[:, rows]
        shapes = (grads[0].shape, *2 * [(len(grads[0]), num_kv, size)])
        gathered = (x.index_select(0, places.gather) for x in gradients)
        return *(x.view(shape) for x, shape in zip(gathered, shapes, strict=True)), None, None


def causal_products(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float) -> Tensor:
    """Attention within rows: q (N, H, D), k and v (N, K, D) -> (N, H, D), in the dtype of q."""
    out: Tensor = _CausalProducts.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out
