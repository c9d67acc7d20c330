"""Attention of rows that branch, and of rows that share one cached prefix; forward only.

A prompt with several answers is one row: its trunk, then its branches one after another. A branch
sees the trunk and itself, so the prompt is computed once, in the pass of its answers. Rows that
begin with the same tokens, such as the examples before each question, keep those in a cache of one
row: all their queries meet its keys in one product per head.

    R rows of a group, T its longest; P tokens of the prefix; N tokens; H query and K key/value
    heads, G = H / K; D head dim
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankscope.models.attention.decode import additive_mask
from rankscope.models.attention.products import RowGroup, RowLayout, attend_in_groups

MAX_SCORES = 2**16  # Most scores of a group in one head: its softmax stays in the CPU cache


@dataclass(frozen=True, slots=True)
class TreeMask:
    """Which tokens of each row see which."""

    branch: Tensor  # (R, T) int64: 0 in the trunk, then 1, 2, ..., and -1 beyond the row
    position: Tensor  # (R, T) int64, from the row's first token; all branches start alike
    trunks: tuple[int, ...]  # Tokens before the first branch, by row
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], branches: Sequence[Sequence[int]]) -> "TreeMask":
        width = max(lengths)
        branch = torch.full((len(lengths), width), -1)
        position = torch.zeros_like(branch)
        trunks = []
        for row, (length, parts) in enumerate(zip(lengths, branches, strict=True)):
            start = length - sum(parts)
            trunks.append(start)
            branch[row, :start] = 0
            position[row, :start] = torch.arange(start)
            for number, part in enumerate(parts, 1):
                branch[row, start : start + part] = number
                position[row, start : start + part] = trunks[-1] + torch.arange(part)
                start += part
        return cls(branch, position, tuple(trunks))

    def visible(self, rows: Sequence[int], first: int, last: int) -> Tensor:
        """Which keys before ``last`` the queries from ``first`` on see, (R, queries, keys). Places
        beyond a row's end see its first token: a softmax over nothing would be NaN."""
        branch = self.branch[list(rows), :last]
        query_branch = branch[:, first:, None]
        is_past = torch.arange(last) <= torch.arange(first, last)[:, None]
        visible = is_past & ((branch[:, None] == 0) | (branch[:, None] == query_branch))
        visible &= query_branch >= 0
        visible[:, :, 0] = True
        return visible

    def mask(
        self, group: RowGroup, span: tuple[int, int], heads: tuple[int, int], dtype: torch.dtype
    ) -> Tensor | None:
        """(K R, queries x G, last): 0 or minus infinity; None if the causal mask will do."""
        num_kv, per_key = heads
        first, last = span
        if min(self.trunks[row] for row in group.rows) >= last:
            return None
        key = (group.start, first, num_kv, per_key, dtype)
        if key not in self._masks:
            hidden = ~self.visible(group.rows, first, last).repeat_interleave(per_key, 1)
            self._masks[key] = additive_mask(hidden, dtype).repeat(num_kv, 1, 1)
        return self._masks[key]

    def wide_mask(self, num_shared: int, window: int | None, device: torch.device) -> Tensor:
        """What each query sees of P shared keys and its row's T, (R, 1, T, P + T) bool."""
        key = (num_shared, window, device)
        if key in self._masks:
            return self._masks[key]
        visible = self.visible(range(len(self.branch)), 0, self.branch.shape[1])
        shared = torch.ones(*visible.shape[:2], num_shared, dtype=torch.bool)
        if window is not None:
            visible &= self.position[:, :, None] - self.position[:, None] < window
            distance = num_shared + self.position[:, :, None] - torch.arange(num_shared)
            shared &= distance < window
        visible[:, :, 0] |= ~torch.cat([shared, visible], 2).any(2)
        self._masks[key] = torch.cat([shared, visible], 2)[:, None].to(device)
        return self._masks[key]


def tree_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: RowLayout,
    scale: float,
    tree: TreeMask,
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """softmax(s q k^T) v over a row's own keys and the prefix's, without a backward pass. q (N, H,
    D), k and v (N, K, D) -> (N, H, D); the prefix's keys and values are (K, P, D) each."""
    q, k, _ = qkv
    num_kv, size = k.shape[1:]
    heads = (num_kv, q.shape[1] // num_kv)

    def mask_of(group: RowGroup, span: tuple[int, int]) -> Tensor:
        mask = tree.mask(group, span, heads, q.dtype)
        return layout.mask(span, heads[1], q.dtype) if mask is None else mask

    def attend(scores: Tensor, queries: Tensor, values: Tensor) -> Tensor:
        if prefix is None:
            return torch.softmax(scores, -1) @ values
        return _attend_with_prefix(
            scale * queries.reshape(num_kv, -1, size), prefix, scores, values
        )

    return attend_in_groups(qkv, layout, scale, mask_of, attend)[0]


def _attend_with_prefix(
    queries: Tensor, prefix: tuple[Tensor, Tensor], scores: Tensor, values: Tensor
) -> Tensor:
    """Attention over P shared keys and the row's own, given the masked scores of the own keys.

    ``queries`` (K, M, D) are scaled, M those of all rows; ``prefix`` (K, P, D) each; ``scores`` (K
    R, M / R, S) and ``values`` (K R, S, D) of own keys. Result: (K R, M / R, D).
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
