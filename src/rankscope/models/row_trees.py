"""Attention of rows that branch: a prompt and several continuations of it, all in one pass.

    trunk  t0 t1 t2 t3            a token sees the trunk up to itself, or the whole trunk and the
    branch 1         a0 a1        tokens of its own branch up to itself; branches stand one after
    branch 2         b0 b1 b2     another behind the trunk, each from the position after it

So a prompt goes through the model once, with its continuations beside it, and there is nothing to
cache between two passes. Products are those of ``row_products``, with a mask for every row.
Forward only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankscope.models.row_products import Layout, alike

TRUNK = 0
"""Branch number of the trunk's tokens; branches count from 1."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Rows in groups of like length, and who sees whom in each."""

    layout: Layout
    branches: tuple[Tensor, ...]
    """By group, (R, T): branch of every token, -1 for padding; on the CPU."""
    positions: tuple[Tensor, ...]
    """By group, (R, T): position of every token in its text; on the CPU."""
    _masks: dict[tuple[int, torch.dtype, int | None], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        branches: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        device: torch.device,
    ) -> "TreeLayout":
        """Lay out consecutive rows.

        Args:
            branches: per row, the branch of every token, the trunk first.
            positions: per row, the position of every token.
            device: where to compute.
        """
        lengths = [len(row) for row in branches]
        grouped_branches, grouped_positions = [], []
        for rows in alike(lengths):
            width = max(lengths[row] for row in rows)
            shape = (len(rows), width)
            of_group, at = torch.full(shape, -1), torch.zeros(shape, dtype=torch.int64)
            for place, row in enumerate(rows):
                of_group[place, : lengths[row]] = torch.tensor(branches[row])
                at[place, : lengths[row]] = torch.tensor(positions[row])
            grouped_branches.append(of_group)
            grouped_positions.append(at)
        layout = Layout.of(lengths, device)
        return cls(layout, tuple(grouped_branches), tuple(grouped_positions))

    def mask(self, group: int, dtype: torch.dtype, window: int | None) -> Tensor:
        """(R, T, T): 0 where a token may look and minus infinity where not; made once.

        Padding sees the row's first token, so that no softmax is empty.
        """
        key = (group, dtype, window)
        if key not in self._masks:
            branch, position = self.branches[group], self.positions[group]
            place = torch.arange(branch.shape[1])
            visible = place[:, None] >= place
            own = branch[:, :, None] == branch[:, None, :]
            visible = visible & (own | (branch[:, None, :] == TRUNK)) & (branch[:, :, None] >= 0)
            if window is not None:
                visible &= position[:, :, None] - position[:, None, :] < window
            visible[:, :, 0] |= branch < 0
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
            self._masks[key] = mask.to(self.layout.device)
        return self._masks[key]


def tree_products(
    q: Tensor, k: Tensor, v: Tensor, tree: TreeLayout, scale: float, window: int | None
) -> Tensor:
    """softmax(s q k^T) v within branches: q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
    layout = tree.layout
    num_kv, size = k.shape[1:]
    per_key = q.shape[1] // num_kv
    places = layout.places(num_kv)
    spread = [x.reshape(len(k) * num_kv, -1).index_select(0, places.spread) for x in (q, k, v)]
    out = torch.empty_like(spread[0])
    for index, group in enumerate(layout.groups):
        mask = tree.mask(index, q.dtype, window)
        queries, keys, values, result = (group.part(x, num_kv) for x in (*spread, out))
        queries, result = (x.view(len(x), -1, size) for x in (queries, result))
        for first, last in group.spans():
            rows = slice(first * per_key, last * per_key)
            scores = torch.bmm(queries[:, rows], keys[:, :last].transpose(1, 2)).mul_(scale)
            by_row = scores.view(group.num_rows, num_kv, last - first, per_key, last)
            by_row += mask[:, None, first:last, None, :last]
            result[:, rows] = torch.softmax(scores, -1) @ values[:, :last]
    return out.index_select(0, places.gather).view(q.shape)
