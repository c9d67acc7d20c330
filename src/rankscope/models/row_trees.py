"""Attention of rows that branch: a prompt and several continuations of it, all in one pass.

    parent    p0 p1 p2                 a row that others continue; they see all of it
    trunk           t0 t1 t2           a token sees the trunk up to itself, or the whole trunk and
    branch 1                a0 a1      the tokens of its own branch up to itself; branches stand one
    branch 2                b0 b1 b2   after another behind the trunk, each from the position after

So what texts have in common goes through the model once, with everything that continues it beside
it, and there is nothing to cache between two passes. Products are those of ``row_products``, with a
mask for every row. Forward only.

    R rows of a group, T its longest, P tokens of a parent; N tokens in all; H query and K key/value
    heads, G = H / K; D head dim
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankscope.models.row_products import BLOCK, alike

TRUNK = 0
"""Branch number of the trunk's tokens; branches count from 1."""
NO_PARENT = -1


@dataclass(frozen=True, slots=True)
class TreeGroup:
    """Rows laid out together."""

    queries: Tensor
    """(R, T) index into the N tokens; padding points at its row's first."""
    keys: Tensor
    """(R, P + T) the same, a parent's tokens first."""
    branches: Tensor
    """(R, T), -1 for padding."""
    positions: Tensor
    """(R, P + T) in the text."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.queries)

    @property
    def width(self) -> int:
        """T."""
        return self.queries.shape[1]

    @property
    def prefix(self) -> int:
        """P."""
        return self.keys.shape[1] - self.width

    def visible(self, window: int | None) -> Tensor:
        """(R, T, P + T): who sees whom. Padding sees the row's first token, so that no softmax is
        empty."""
        branch, place = self.branches, torch.arange(self.width)
        own = branch[:, :, None] == branch[:, None, :]
        own = (own | (branch[:, None, :] == TRUNK)) & (branch[:, :, None] >= 0)
        own = own & (place[:, None] >= place)
        above = torch.ones(self.num_rows, self.width, self.prefix, dtype=torch.bool)
        found = torch.cat([above, own], 2)
        if window is not None:
            at = self.positions
            found &= at[:, self.prefix :, None] - at[:, None, :] < window
        found[:, :, self.prefix] |= branch < 0
        return found


@dataclass(frozen=True, slots=True)
class TreePlaces:
    """Where (token, key/value head) stands once rows are laid out; see ``row_products.Places``."""

    queries: Tensor
    keys: Tensor
    gather: Tensor


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Rows in groups of like length, and who sees whom in each."""

    groups: tuple[TreeGroup, ...]
    num_tokens: int
    device: torch.device
    _places: dict[int, TreePlaces] = field(default_factory=dict)
    _masks: dict[tuple[int, torch.dtype, int | None], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        branches: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        device: torch.device,
        parents: Sequence[int] | None = None,
    ) -> "TreeLayout":
        """Lay out consecutive rows.

        Args:
            branches: per row, the branch of every token, the trunk first.
            positions: per row, the position of every token.
            device: where to compute.
            parents: per row, which row it continues, ``NO_PARENT`` for none; a parent has none
                itself.
        """
        lengths = [len(row) for row in branches]
        parents = parents or [NO_PARENT] * len(lengths)
        starts = torch.cumsum(torch.tensor([0, *lengths]), 0).tolist()
        by_prefix: dict[int, list[int]] = {}
        for row, parent in enumerate(parents):
            prefix = 0 if parent == NO_PARENT else lengths[parent]
            by_prefix.setdefault(prefix, []).append(row)
        groups = []
        for prefix, rows in by_prefix.items():
            for members in alike([lengths[row] for row in rows]):
                chosen = [rows[member] for member in members]
                width = max(lengths[row] for row in chosen)
                queries = torch.tensor([[starts[row]] * width for row in chosen])
                above = torch.zeros(len(chosen), prefix, dtype=torch.int64)
                at = torch.zeros(len(chosen), prefix + width, dtype=torch.int64)
                branch = torch.full((len(chosen), width), -1)
                for place, row in enumerate(chosen):
                    length, parent = lengths[row], parents[row]
                    queries[place, :length] += torch.arange(length)
                    branch[place, :length] = torch.tensor(branches[row])
                    at[place, prefix : prefix + length] = torch.tensor(positions[row])
                    if prefix:
                        above[place] = starts[parent] + torch.arange(prefix)
                        at[place, :prefix] = torch.tensor(positions[parent])
                groups.append(TreeGroup(queries, torch.cat([above, queries], 1), branch, at))
        return cls(tuple(groups), starts[-1], device)

    def places(self, num_kv: int) -> TreePlaces:
        """Where everything stands for ``num_kv`` key/value heads; made once."""
        if num_kv not in self._places:
            heads = torch.arange(num_kv)[:, None]

            def by_head(tokens: Tensor) -> Tensor:  # (R, T) -> (R K T,)
                return (tokens[:, None, :] * num_kv + heads).reshape(-1)

            queries = torch.cat([by_head(group.queries) for group in self.groups])
            exists = torch.cat(
                [
                    (group.branches >= 0)[:, None].expand(-1, num_kv, -1).reshape(-1)
                    for group in self.groups
                ]
            )
            valid = torch.nonzero(exists).reshape(-1)
            gather = torch.empty(self.num_tokens * num_kv, dtype=torch.int64)
            gather[queries[valid]] = valid
            keys = torch.cat([by_head(group.keys) for group in self.groups])
            found = (part.to(self.device) for part in (queries, keys, gather))
            self._places[num_kv] = TreePlaces(*found)
        return self._places[num_kv]

    def mask(self, index: int, dtype: torch.dtype, window: int | None) -> Tensor:
        """Of one group, (R, T, P + T): 0 where a token may look, minus infinity where not; made
        once."""
        key = (index, dtype, window)
        if key not in self._masks:
            hidden = ~self.groups[index].visible(window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask.to(self.device)
        return self._masks[key]


def tree_products(
    q: Tensor, k: Tensor, v: Tensor, tree: TreeLayout, scale: float, window: int | None
) -> Tensor:
    """softmax(s q k^T) v within branches: q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
    num_kv, size = k.shape[1:]
    per_key = q.shape[1] // num_kv
    places = tree.places(num_kv)
    spread = q.reshape(len(q) * num_kv, -1).index_select(0, places.queries)
    keys, values = (x.reshape(len(x) * num_kv, -1).index_select(0, places.keys) for x in (k, v))
    out = torch.empty_like(spread)
    at = above = 0
    for index, group in enumerate(tree.groups):
        mask = tree.mask(index, q.dtype, window)
        num_rows, width, prefix = group.num_rows, group.width, group.prefix
        rows = slice(at, at := at + num_rows * num_kv * width)
        columns = slice(above, above := above + num_rows * num_kv * (prefix + width))
        shape = (num_rows * num_kv, -1, size)
        own_q, result = spread[rows].view(shape), out[rows].view(shape)
        own_k, own_v = keys[columns].view(shape), values[columns].view(shape)
        for first in range(0, width, BLOCK):
            last = min(first + BLOCK, width)
            part, end = slice(first * per_key, last * per_key), prefix + last
            scores = torch.bmm(own_q[:, part], own_k[:, :end].transpose(1, 2)).mul_(scale)
            by_row = scores.view(num_rows, num_kv, last - first, per_key, end)
            by_row += mask[:, None, first:last, None, :end]
            result[:, part] = torch.softmax(scores, -1) @ own_v[:, :end]
    return out.index_select(0, places.gather).view(q.shape)
