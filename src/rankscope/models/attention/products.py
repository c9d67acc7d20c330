"""Causal attention of concatenated rows by plain matrix products, forward and backward.

On processors torch's fused attention is slow. Ten rows of 224 tokens (9 query and 3 key/value heads
of 64, bfloat16, one core) take it 63 ms forward and backward; these products take 27 ms. They save
three more things. Query heads that share a key/value head become rows of one product, so keys and
values are never repeated. Rows of similar length share a product, so padding costs little. Long
rows are cut into blocks of queries that skip all later keys.

    R rows of a group, T its longest; N tokens; H query and K key/value heads, G = H / K; D head dim
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_LENGTH = 1024  # Longer rows use the fused attention: it keeps no T x T probabilities

PADDING_PERCENT = 15  # A group's longest row has at most so much more tokens than its shortest

QUERY_BLOCK = 128  # Queries of one product; its keys end at the block's last query


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return minus infinity at the ``hidden`` keys, bool, and 0 elsewhere."""
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, float("-inf"))


class _RowGroup:
    """Rows of similar length, laid out together as (K, R, T)."""

    def __init__(self, rows: Sequence[int], width: int, start: int) -> None:
        """``rows`` are indices in the batch; ``start`` is the first of the group's R x T places."""
        self.rows, self.width, self.start = rows, width, start
        self.stop = start + len(rows) * width

    def view(self, x: Tensor, num_kv: int) -> Tensor:
        """View the group's laid-out tokens: (L K, G D) by key/value head -> (K R, T, G D)."""
        rows = x[self.start * num_kv : self.stop * num_kv]
        return rows.view(len(self.rows) * num_kv, self.width, -1)

    def spans(self) -> list[tuple[int, int]]:
        """Return (first query, one after the last) of each block."""
        firsts = range(0, self.width, QUERY_BLOCK)
        return [(first, min(first + QUERY_BLOCK, self.width)) for first in firsts]


class RowLayout:
    """Rows in groups of similar length, with L places in all, padding included."""

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device,
        max_scores: int | None = None,
        num_shared: int = 0,
    ) -> None:
        """Lay out consecutive rows of the given lengths (each at least 1).

        Args:
            max_scores: limit of a group's scores in one head.
            num_shared: keys that each query sees besides those of its own row.
        """
        self.num_tokens, self.device = sum(lengths), device
        self.groups: list[_RowGroup] = []
        # By group, (R, T): an index i into the N tokens, or -1 - i for padding, where i is the
        # row's first.
        self._sources: list[Tensor] = []
        self._places: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int, int, torch.dtype], Tensor] = {}
        counts = torch.tensor(lengths, dtype=torch.int64)
        starts = torch.cumsum(counts, 0) - counts
        place = 0
        for rows in _group_by_length(lengths, max_scores, num_shared):
            index = torch.tensor(rows)
            width = int(counts[index].max())
            steps = torch.arange(width)
            exists = steps < counts[index, None]
            # Padding repeats its own row's first token: NaN from a diverged adapter must not reach
            # another row, not even multiplied by zero.
            first = starts[index, None]
            self._sources.append(torch.where(exists, first + steps, -1 - first))
            self.groups.append(_RowGroup(rows, width, place))
            place = self.groups[-1].stop

    def places(self, num_kv: int) -> tuple[Tensor, Tensor, Tensor]:
        """Map (token, key/value head) pairs to places, and back.

        Heads that share a key/value head are neighbors in memory, so one walk over memory lays
        queries out in the order of the products.

        Returns:
            (L K,) indices into N K, where padding points at its row's first token.
            (N K,) indices into L K.
            The places of padding.
        """
        if num_kv not in self._places:
            heads = torch.arange(num_kv)[:, None, None]
            ordered, is_valid = [], []
            for source in self._sources:  # (R, T) -> (K, R, T)
                token = torch.where(source < 0, -1 - source, source)
                ordered.append((token * num_kv + heads).reshape(-1))
                is_valid.append((source >= 0).expand(num_kv, -1, -1).reshape(-1))
            spread, exists = torch.cat(ordered), torch.cat(is_valid)
            valid = torch.nonzero(exists).reshape(-1)
            gather = torch.empty(self.num_tokens * num_kv, dtype=torch.int64)
            gather[spread[valid]] = valid
            padding = torch.nonzero(~exists).reshape(-1)
            places = (spread.to(self.device), gather.to(self.device), padding.to(self.device))
            self._places[num_kv] = places
        return self._places[num_kv]

    def mask(self, span: tuple[int, int], per_key: int, dtype: torch.dtype) -> Tensor:
        """Return the mask (queries x G, last): 0 for visible keys, else minus infinity; cached."""
        first, last = span
        key = (first, last, per_key, dtype)
        if key not in self._masks:
            queries = torch.arange(first, last, device=self.device)
            keys = torch.arange(last, device=self.device)
            hidden = (keys > queries[:, None]).repeat_interleave(per_key, 0)
            self._masks[key] = additive_mask(hidden, dtype)
        return self._masks[key]


def _group_by_length(
    lengths: Sequence[int], max_scores: int | None = None, num_shared: int = 0
) -> list[list[int]]:
    """Group row indices by similar length, longest first; see :class:`RowLayout`."""
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


def _attend_in_groups(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    scale: float,
    mask_of: Callable[[_RowGroup, tuple[int, int]], Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Attend within rows: q (N, H, D), k and v (N, K, D) -> (N, H, D), and the laid-out q, k, v.

    Args:
        mask_of: returns the mask of a block of queries.
        attend: returns the block's result from scores (K R, queries x G, keys), queries (K R,
            queries x G, D) and values (K R, keys, D).
    """
    q, k, _ = qkv
    num_kv, size = k.shape[1:]
    per_key = q.shape[1] // num_kv
    to_places, to_tokens, _ = layout.places(num_kv)
    spread = [x.reshape(len(k) * num_kv, -1).index_select(0, to_places) for x in qkv]
    out = torch.empty_like(spread[0])
    for group in layout.groups:
        queries, keys, values, result = (group.view(x, num_kv) for x in (*spread, out))
        queries, result = (x.view(len(x), -1, size) for x in (queries, result))
        for span in group.spans():
            rows, last = slice(span[0] * per_key, span[1] * per_key), span[1]
            transposed = keys[:, :last].transpose(1, 2)
            scores = torch.baddbmm(mask_of(group, span), queries[:, rows], transposed, alpha=scale)
            result[:, rows] = attend(scores, queries[:, rows], values[:, :last])
    return out.index_select(0, to_tokens).view(q.shape), spread


class _CausalProducts(torch.autograd.Function):
    """Computes softmax(s q k^T) v within each row, causally."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float
    ) -> Tensor:
        saved: list[Tensor] = []

        def attend(scores: Tensor, queries: Tensor, values: Tensor) -> Tensor:
            saved.append(torch.softmax(scores, -1))
            return saved[-1] @ values

        per_key = q.shape[1] // k.shape[1]
        out, spread = _attend_in_groups(
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
        to_places, to_tokens, padding = layout.places(num_kv)
        grad = grads[0].reshape(-1, per_key * size).index_select(0, to_places)
        grad.index_fill_(0, padding, 0)
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
        gathered = (x.index_select(0, to_tokens) for x in gradients)
        return *(x.view(shape) for x, shape in zip(gathered, shapes, strict=True)), None, None


def causal_products(q: Tensor, k: Tensor, v: Tensor, layout: RowLayout, scale: float) -> Tensor:
    """Attend within rows: q (N, H, D), k and v (N, K, D) -> (N, H, D), in the dtype of q."""
    out: Tensor = _CausalProducts.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out


# --- rows that branch, and rows that share one cached prefix; forward only. A prompt with several
# answers is one row: its trunk, then its branches one after another. A branch sees the trunk and
# itself, so the prompt is computed once, in the pass of its answers. Rows that begin with the same
# tokens, such as the examples before each question, keep those P tokens in a cache of one row. All
# their queries meet its keys in one product per head.

MAX_SCORES = 2**16  # Most scores of a group in one head: its softmax stays in the CPU cache


class TreeMask:
    """The tokens of each row that see each other."""

    def __init__(self, lengths: Sequence[int], branches: Sequence[Sequence[int]]) -> None:
        # (R, T): 0 in the trunk, then 1, 2, ..., and -1 beyond the row.
        self.branch = torch.full((len(lengths), max(lengths)), -1)
        # (R, T), from the row's first token; all branches start alike.
        self.position = torch.zeros_like(self.branch)
        self.trunks: list[int] = []  # Tokens before the first branch, by row
        self._masks: dict[tuple[object, ...], Tensor] = {}
        for row, (length, parts) in enumerate(zip(lengths, branches, strict=True)):
            trunk = start = length - sum(parts)
            self.trunks.append(trunk)
            self.branch[row, :start] = 0
            self.position[row, :start] = torch.arange(start)
            for number, part in enumerate(parts, 1):
                self.branch[row, start : start + part] = number
                self.position[row, start : start + part] = trunk + torch.arange(part)
                start += part

    def visible(self, rows: Sequence[int], first: int, last: int) -> Tensor:
        """Return the keys before ``last`` that the queries from ``first`` on see, (R, queries,
        keys).

        Places beyond a row's end see its first token, because a softmax over nothing would be NaN.
        """
        branch = self.branch[list(rows), :last]
        query_branch = branch[:, first:, None]
        is_past = torch.arange(last) <= torch.arange(first, last)[:, None]
        visible = is_past & ((branch[:, None] == 0) | (branch[:, None] == query_branch))
        visible &= query_branch >= 0
        visible[:, :, 0] = True
        return visible

    def mask(
        self, group: _RowGroup, span: tuple[int, int], heads: tuple[int, int], dtype: torch.dtype
    ) -> Tensor | None:
        """Return the mask (K R, queries x G, last), 0 or minus infinity; None if the causal mask is
        it."""
        num_kv, per_key = heads
        first, last = span
        if min(self.trunks[row] for row in group.rows) >= last:
            return None
        key = (group.start, first, num_kv, per_key, dtype)
        if key not in self._masks:
            hidden = ~self.visible(group.rows, first, last).repeat_interleave(per_key, 1)
            self._masks[key] = additive_mask(hidden, dtype).repeat(num_kv, 1, 1)
        return self._masks[key]


def tree_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    scale: float,
    tree: TreeMask,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Compute softmax(s q k^T) v over a row's own keys and the prefix's, forward only.

    Shapes: q (N, H, D), k and v (N, K, D) -> (N, H, D); the prefix's keys and values (K, P, D)
    each.
    """
    q, k, _ = qkv
    num_kv, size = k.shape[1:]
    heads = (num_kv, q.shape[1] // num_kv)

    def mask_of(group: _RowGroup, span: tuple[int, int]) -> Tensor:
        mask = tree.mask(group, span, heads, q.dtype)
        return layout.mask(span, heads[1], q.dtype) if mask is None else mask

    def attend(scores: Tensor, queries: Tensor, values: Tensor) -> Tensor:
        if prefix is None:
            return torch.softmax(scores, -1) @ values
        return _attend_with_prefix(
            scale * queries.reshape(num_kv, -1, size), prefix, scores, values
        )

    return _attend_in_groups(qkv, layout, scale, mask_of, attend)[0]


def _attend_with_prefix(
    queries: Tensor, prefix: tuple[Tensor, Tensor], scores: Tensor, values: Tensor
) -> Tensor:
    """Attend over P shared keys and the row's own, given the masked scores of the own keys.

    Shapes: scaled ``queries`` of all rows (K, M, D); ``prefix`` (K, P, D) each; ``scores`` of own
    keys (K R, M / R, S) and their ``values`` (K R, S, D). Result: (K R, M / R, D).
    """
    keys, shared_values = prefix
    num_kv, num_queries, size = queries.shape
    num_shared = keys.shape[1]
    both = scores.new_empty(num_kv, num_queries, num_shared + scores.shape[2])
    both[:, :, num_shared:] = scores.view(num_kv, num_queries, -1)
    for head in range(num_kv):
        torch.mm(queries[head], keys[head].T, out=both[head, :, :num_shared])
    both = torch.softmax(both, -1)
    out = both.view(len(values), -1, both.shape[2])[:, :, num_shared:] @ values
    out.view(num_kv, num_queries, size).baddbmm_(both[:, :, :num_shared], shared_values)
    return out
