"""Causal attention of concatenated rows by plain matrix products, forward and backward.

On processors torch's fused attention is slow: 63 ms forward and backward for ten rows of 224 tokens
(9 query and 3 key/value heads of 64, bfloat16, one core) where these products take 27. Three things
are saved besides: query heads that share a key/value head are folded into rows of one product, so
keys and values are never repeated; rows of like length are laid out together, so that little is
spent on padding; and long rows are cut into blocks of queries that see no keys after their own.

    R rows of a group, T its longest; N tokens; H query and K key/value heads, G = H / K; D head dim
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Rows laid out together, as (R, K, T, ...)."""

    num_rows: int
    width: int
    start: int
    """Where it begins in the laid-out tokens, R x T of each group one after another."""

    @property
    def stop(self) -> int:
        """Where it ends in the laid-out tokens."""
        return self.start + self.num_rows * self.width


@dataclass(frozen=True, slots=True)
class Layout:
    """Which token stands where once rows are sorted into groups; L laid-out places in all."""

    groups: tuple[Group, ...]
    to_groups: Tensor
    """(L,) index into the N tokens; padding points at its row's first token."""
    to_tokens: Tensor
    """(N,) index into the L places."""
    padding: Tensor
    """Places that hold padding."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Layout":
        """Lay out consecutive rows of the given lengths (each at least 1)."""
        counts = torch.tensor(lengths, dtype=torch.int64)
        starts = torch.cumsum(counts, 0) - counts
        groups: list[Group] = []
        sources: list[Tensor] = []
        valid: list[Tensor] = []
        place = 0
        for rows in alike(lengths):
            index = torch.tensor(rows)
            width = int(counts[index].max())
            steps = torch.arange(width)
            exists = steps[None, :] < counts[index, None]
            first = starts[index, None]
            sources.append(torch.where(exists, first + steps[None, :], first).reshape(-1))
            valid.append(exists.reshape(-1))
            groups.append(Group(len(rows), width, place))
            place = groups[-1].stop
        to_groups, is_valid = torch.cat(sources), torch.cat(valid)
        places = torch.nonzero(is_valid).reshape(-1)
        to_tokens = torch.empty(int(counts.sum()), dtype=torch.int64)
        to_tokens[to_groups[places]] = places
        return cls(
            tuple(groups),
            to_groups.to(device),
            to_tokens.to(device),
            torch.nonzero(~is_valid).reshape(-1).to(device),
        )

    def spread(self, x: Tensor) -> Tensor:
        """(N, heads, D) -> (L, heads, D)."""
        return x.index_select(0, self.to_groups)

    def gather(self, x: Tensor) -> Tensor:
        """(L, heads, D) -> (N, heads, D)."""
        return x.index_select(0, self.to_tokens)


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Row indices in groups of like length, longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and 100 * lengths[groups[-1][0]] <= (100 + PADDING_PERCENT) * lengths[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@dataclass(slots=True)
class Block:
    """One block of queries of one group: what its backward pass needs."""

    group: Group
    first: int
    """Its first query and, ``last``, the one after its last; it sees keys 0 to ``last``."""
    last: int
    probabilities: Tensor
    """(R K, queries x G, last)."""


def causal_mask(first: int, last: int, per_key: int, like: Tensor) -> Tensor:
    """(queries x G, last), 0 where a query may look and minus infinity where not."""
    queries = torch.arange(first, last, device=like.device)
    keys = torch.arange(last, device=like.device)
    hidden = (keys[None, :] > queries[:, None]).repeat_interleave(per_key, 0)
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def folded(x: Tensor, group: Group, num_kv: int) -> Tensor:
    """(L, heads, D) -> one group as (R K, T G, D), G heads of a token side by side."""
    part = x[group.start : group.stop].view(group.num_rows, group.width, num_kv, -1, x.shape[-1])
    return part.transpose(1, 2).reshape(group.num_rows * num_kv, -1, x.shape[-1])


def unfold(x: Tensor, group: Group, out: Tensor) -> None:
    """(R K, T G, D) into its place in ``out``, (L, heads, D)."""
    num_kv = x.shape[0] // group.num_rows
    target = out[group.start : group.stop]
    target = target.view(group.num_rows, group.width, num_kv, -1, x.shape[-1])
    target.copy_(x.view(group.num_rows, num_kv, group.width, -1, x.shape[-1]).transpose(1, 2))


class RowProducts(torch.autograd.Function):
    """softmax(s q k^T) v within each row, causal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        """q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
        num_kv = k.shape[1]
        per_key = q.shape[1] // num_kv
        spread = [layout.spread(x) for x in (q, k, v)]
        out = torch.empty_like(spread[0])
        blocks: list[Block] = []
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for group in layout.groups:
            queries, keys, values = (folded(x, group, num_kv) for x in spread)
            result = torch.empty_like(queries)
            for first in range(0, group.width, BLOCK):
                last = min(first + BLOCK, group.width)
                span = slice(first * per_key, last * per_key)
                scores = torch.baddbmm(
                    causal_mask(first, last, per_key, q),
                    queries[:, span],
                    keys[:, :last].transpose(1, 2),
                    alpha=scale,
                )
                probabilities = torch.softmax(scores, -1)
                result[:, span] = probabilities @ values[:, :last]
                blocks.append(Block(group, first, last, probabilities))
            kept.append((queries, keys, values))
            unfold(result, group, out)
        ctx.layout, ctx.scale, ctx.blocks, ctx.kept = layout, scale, blocks, kept
        return layout.gather(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients of q, k and v."""
        layout: Layout = ctx.layout
        grad = layout.spread(grads[0].contiguous())
        grad.index_fill_(0, layout.padding, 0)
        blocks = iter(ctx.blocks)
        num_kv = ctx.kept[0][1].shape[0] // layout.groups[0].num_rows
        per_key = grad.shape[1] // num_kv
        outs = [torch.empty_like(grad)]
        outs += [grad.new_empty(len(grad), num_kv, grad.shape[2]) for _ in range(2)]
        for group, (queries, keys, values) in zip(layout.groups, ctx.kept, strict=True):
            above = folded(grad, group, num_kv)
            grads_qkv = (torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(keys))
            for _ in range(0, group.width, BLOCK):
                block = next(blocks)
                last, probabilities = block.last, block.probabilities
                span = slice(block.first * per_key, last * per_key)
                part = above[:, span]
                grads_qkv[2][:, :last] += probabilities.transpose(1, 2) @ part
                inner = part @ values[:, :last].transpose(1, 2)
                inner = torch._softmax_backward_data(inner, probabilities, -1, inner.dtype)
                inner *= ctx.scale
                grads_qkv[0][:, span] = inner @ keys[:, :last]
                grads_qkv[1][:, :last] += inner.transpose(1, 2) @ queries[:, span]
                block.probabilities = probabilities.new_empty(0)
            for x, out in zip(grads_qkv, outs, strict=True):
                unfold(x, group, out)
        return *(layout.gather(out) for out in outs), None, None


def row_products(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention within rows: q (N, H, D), k and v (N, K, D) -> (N, H, D), in the dtype of q."""
    out: Tensor = RowProducts.apply(q, k, v, layout, scale)  # type: ignore[no-untyped-call]
    return out
