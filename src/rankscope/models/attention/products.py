"""Causal attention of concatenated rows by plain matrix products, forward and backward.

On processors torch's fused attention is slow: 63 ms forward and backward for ten rows of 224 tokens
(9 query and 3 key/value heads of 64, bfloat16, one core) where these products take 27. Three things
are saved besides: query heads that share a key/value head are folded into rows of one product, so
keys and values are never repeated; rows of like length are laid out together, so that little is
spent on padding; and long rows are cut into blocks of queries that see no keys after their own.

    R rows of a group, T its longest; N tokens; H query and K key/value heads, G = H / K; D head dim
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MAX_LENGTH = 1024
"""Longer rows go to the fused attention: the T x T probabilities kept for the backward pass would
outweigh everything else that is kept."""

PADDING_PERCENT = 15
"""Rows share a group while the longest has at most so much more tokens than the shortest."""

BLOCK = 128
"""Queries of one block; all keys up to the block's last query are in its product."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows laid out together, as (K, R, T)."""

    rows: tuple[int, ...]
    """Which rows, by their place in the batch."""
    width: int
    start: int
    """Where it begins in the laid-out tokens, R x T of each group one after another."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.rows)

    @property
    def stop(self) -> int:
        """Where it ends in the laid-out tokens."""
        return self.start + self.num_rows * self.width

    def part(self, x: Tensor, num_kv: int) -> Tensor:
        """(L K, G D), laid-out tokens by key/value head, -> the group's (K R, T, G D), a view."""
        rows = x[self.start * num_kv : self.stop * num_kv]
        return rows.view(self.num_rows * num_kv, self.width, -1)

    def spans(self) -> list[tuple[int, int]]:
        """First query and the one after the last of each block."""
        firsts = range(0, self.width, BLOCK)
        return [(first, min(first + BLOCK, self.width)) for first in firsts]


@dataclass(frozen=True, slots=True)
class Places:
    """Which (token, key/value head) stands where once rows are sorted into groups.

    Both sides are rows of memory: the heads that share a key/value head lie side by side, so one
    walk over memory lays queries out as the products want them.
    """

    spread: Tensor
    """(L K,) index into N K; padding points at its row's first token."""
    gather: Tensor
    """(N K,) index into L K."""
    padding: Tensor
    """Places that hold padding."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows in groups of like length; L laid-out places in all, padding included."""

    groups: tuple[Group, ...]
    sources: tuple[Tensor, ...]
    """By group, (R, T): index i into the N tokens; for padding -1 - i, i its row's first."""
    num_tokens: int
    device: torch.device
    _places: dict[int, Places] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        max_scores: int | None = None,
        num_shared: int = 0,
    ) -> "Layout":
        """Lay out consecutive rows of the given lengths (each at least 1).

        ``max_scores`` bounds a group's scores, of one head, while each of its queries has
        ``num_shared`` keys besides those of its own row.
        """
        counts = torch.tensor(lengths, dtype=torch.int64)
        starts = torch.cumsum(counts, 0) - counts
        groups: list[Group] = []
        sources: list[Tensor] = []
        place = 0
        for rows in alike(lengths, max_scores, num_shared):
            index = torch.tensor(rows)
            width = int(counts[index].max())
            steps = torch.arange(width)
            exists = steps < counts[index, None]
            # Padding is minus one less its row's first token: no row may see another one's numbers,
            # which a diverged adapter turns into NaN, not even multiplied by zero.
            first = starts[index, None]
            sources.append(torch.where(exists, first + steps, -1 - first))
            groups.append(Group(tuple(rows), width, place))
            place = groups[-1].stop
        return cls(tuple(groups), tuple(sources), int(counts.sum()), device)

    def places(self, num_kv: int) -> Places:
        """Where everything stands for ``num_kv`` key/value heads; made once."""
        if num_kv not in self._places:
            heads = torch.arange(num_kv)[:, None, None]
            ordered, is_valid = [], []
            for own in self.sources:  # (R, T) -> (K, R, T)
                token = torch.where(own < 0, -1 - own, own)
                ordered.append((token * num_kv + heads).reshape(-1))
                is_valid.append((own >= 0).expand(num_kv, -1, -1).reshape(-1))
            source, exists = torch.cat(ordered), torch.cat(is_valid)
            valid = torch.nonzero(exists).reshape(-1)
            gather = torch.empty(self.num_tokens * num_kv, dtype=torch.int64)
            gather[source[valid]] = valid
            self._places[num_kv] = Places(
                source.to(self.device),
                gather.to(self.device),
                torch.nonzero(~exists).reshape(-1).to(self.device),
            )
        return self._places[num_kv]

    def mask(self, span: tuple[int, int], per_key: int, dtype: torch.dtype) -> Tensor:
        """(queries x G, last): 0 where a query may look and minus infinity where not; made once."""
        first, last = span
        key = (first, last, per_key, dtype)
        if key not in self._masks:
            queries = torch.arange(first, last, device=self.device)
            keys = torch.arange(last, device=self.device)
            hidden = (keys > queries[:, None]).repeat_interleave(per_key, 0)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
            self._masks[key] = zeros.masked_fill_(hidden, float("-inf"))
        return self._masks[key]


def alike(
    lengths: Sequence[int], max_scores: int | None = None, num_shared: int = 0
) -> list[list[int]]:
    """Row indices in groups of like length, longest first; see :meth:`Layout.of`."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        is_alike = bool(groups) and 100 * longest <= (100 + PADDING_PERCENT) * lengths[row]
        scores = longest * (num_shared + longest)
        most = len(lengths) if max_scores is None else max(1, max_scores // max(1, scores))
        if is_alike and len(groups[-1]) < most:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class RowProducts(torch.autograd.Function):
    """softmax(s q k^T) v within each row, causal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        """q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
        num_kv, size = k.shape[1:]
        per_key = q.shape[1] // num_kv
        places = layout.places(num_kv)
        spread = [x.reshape(len(k) * num_kv, -1).index_select(0, places.spread) for x in (q, k, v)]
        out = torch.empty_like(spread[0])
        kept: list[Tensor] = []
        for group in layout.groups:
            queries, keys, values, result = (group.part(x, num_kv) for x in (*spread, out))
            queries, result = (x.view(len(x), -1, size) for x in (queries, result))
            for span in group.spans():
                rows = slice(span[0] * per_key, span[1] * per_key)
                scores = torch.baddbmm(
                    layout.mask(span, per_key, q.dtype),
                    queries[:, rows],
                    keys[:, : span[1]].transpose(1, 2),
                    alpha=scale,
                )
                probabilities = torch.softmax(scores, -1)
                result[:, rows] = probabilities @ values[:, : span[1]]
                kept.append(probabilities)
        ctx.save_for_backward(*spread, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out.index_select(0, places.gather).view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients of q, k and v."""
        layout: Layout = ctx.layout
        saved = ctx.saved_tensors  # asked for once: where layers are recomputed, there is no again
        spread, kept = saved[:3], iter(saved[3:])
        size = spread[1].shape[1]
        per_key = spread[0].shape[1] // size
        num_kv = grads[0].shape[1] // per_key
        places = layout.places(num_kv)
        grad = grads[0].reshape(-1, per_key * size).index_select(0, places.spread)
        grad.index_fill_(0, places.padding, 0)
        found = [torch.empty_like(spread[0]), *(torch.zeros_like(x) for x in spread[1:])]
        for group in layout.groups:
            queries, keys, values, above, grad_q, grad_k, grad_v = (
                group.part(x, num_kv) for x in (*spread, grad, *found)
            )
            queries, above, grad_q = (x.view(len(x), -1, size) for x in (queries, above, grad_q))
            for span in group.spans():
                last, probabilities = span[1], next(kept)
                rows = slice(span[0] * per_key, last * per_key)
                part = above[:, rows]
                grad_v[:, :last] += probabilities.transpose(1, 2) @ part
                inner = part @ values[:, :last].transpose(1, 2)
                inner = torch._softmax_backward_data(inner, probabilities, -1, inner.dtype)
                inner *= ctx.scale
                grad_q[:, rows] = inner @ keys[:, :last]
                grad_k[:, :last] += inner.transpose(1, 2) @ queries[:, rows]
        shapes = (grads[0].shape, *2 * [(len(grads[0]), num_kv, size)])
        gathered = (x.index_select(0, places.gather) for x in found)
        return *(x.view(shape) for x, shape in zip(gathered, shapes, strict=True)), None, None


def row_products(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention within rows: q (N, H, D), k and v (N, K, D) -> (N, H, D), in the dtype of q."""
    out: Tensor = RowProducts.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out
