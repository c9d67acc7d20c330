"""The items of a task as rows whose log-probabilities are wanted, for whichever model runs them.

A question is a tree: its prompt is the trunk and every option of two tokens or more a branch
(``models/row_trees.py``). A row of text is a trunk alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.evaluate.choice import MAX_LOGITS, Question
from rankscope.evaluate.suite import EncodedSplit
from rankscope.models.base import Row, RowBatch
from rankscope.models.packed import Segment
from rankscope.models.row_attention import RowPlan
from rankscope.models.row_trees import TRUNK, TreeLayout

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tree:
    """One item's tokens, and which of them predict what."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    """Per token, ``TRUNK`` or the number of its branch."""
    keep: tuple[int, ...]
    """Tokens whose logits are wanted, ascending."""
    targets: tuple[tuple[int, int, int], ...]
    """(index into ``keep``, token id, which continuation) of every log-probability."""
    num_continuations: int
    gold: int
    """Which continuation is the right answer."""

    @classmethod
    def of_question(cls, question: Question, gold: int) -> "Tree":
        """Prompt and options; the prompt's last token predicts every option's first."""
        prompt = list(question.prompt)
        ids, positions = list(prompt), list(range(len(prompt)))
        branches = [TRUNK] * len(prompt)
        keep = [len(prompt) - 1]
        targets = []
        for continuation, tokens in enumerate(question.continuations):
            targets.append((0, tokens[0], continuation))
            for step, token in enumerate(tokens[:-1]):
                targets.append((len(keep), tokens[step + 1], continuation))
                keep.append(len(ids))
                ids.append(token)
                positions.append(len(prompt) + step)
                branches.append(continuation + 1)
        return cls(
            tuple(ids),
            tuple(positions),
            tuple(branches),
            tuple(keep),
            tuple(targets),
            len(question.continuations),
            gold,
        )

    @classmethod
    def of_row(cls, row: EncodedRow) -> "Tree":
        """A row of text; its labelled tokens are the one continuation."""
        labels = [t for t, kept in enumerate(row.is_label) if kept]
        length = len(row.input_ids)
        return cls(
            tuple(row.input_ids),
            tuple(range(length)),
            (TRUNK,) * length,
            tuple(t - 1 for t in labels),
            tuple((i, row.input_ids[t], 0) for i, t in enumerate(labels)),
            1,
            0,
        )

    def gold_row(self) -> "Tree":
        """The trunk and the right answer alone, as one row of text."""
        chosen = [t for t, b in enumerate(self.branches) if b in (TRUNK, self.gold + 1)]
        place = {token: i for i, token in enumerate(chosen)}
        found = [(self.keep[k], token) for k, token, c in self.targets if c == self.gold]
        return Tree(
            tuple(self.ids[t] for t in chosen),
            tuple(self.positions[t] for t in chosen),
            (TRUNK,) * len(chosen),
            tuple(place[at] for at, _ in found),
            tuple((i, token, 0) for i, (_, token) in enumerate(found)),
            1,
            0,
        )


def trees_of(encoded: EncodedSplit) -> list[Tree]:
    """The items of a split as trees: multiple choice, of which the continuations that the headline
    metric compares are taken, or rows of text."""
    if encoded.rows:
        return [Tree.of_row(row) for row in encoded.rows]
    trees = []
    for item, question in zip(encoded.items, encoded.questions, strict=True):
        assert item.answer is not None
        compared = question.continuations[: len(item.choices)]
        trees.append(Tree.of_question(Question(question.prompt, compared), item.answer))
    return trees


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Trees concatenated for one pass."""

    batch: RowBatch
    plan: RowPlan
    rows: Tensor
    """(P,) which kept position each wanted log-probability is at."""
    tokens: Tensor
    """(P,) token ids."""
    owners: npt.NDArray[np.int64]
    """(P,) continuation, counted over the whole batch."""
    bounds: tuple[int, ...]
    """Continuations of all trees before each, and of all."""

    @classmethod
    def of(
        cls, trees: Sequence[Tree], device: torch.device, parents: Sequence[int] | None = None
    ) -> "TreeBatch":
        """Concatenate trees; ``parents`` names for each the tree it continues, -1 for none."""
        batch = RowBatch.of([Row(tree.ids, tree.keep) for tree in trees], device)
        places = torch.tensor([[p for tree in trees for p in tree.positions]], device=device)
        batch = replace(batch, position_ids=places)
        plan = RowPlan.of(batch.lengths, device)
        if parents or any(tree.branches[-1] != TRUNK for tree in trees):
            branches, positions = [t.branches for t in trees], [t.positions for t in trees]
            layout = TreeLayout.of(branches, positions, device, parents)
            plan = replace(plan, tree=layout)
        rows, tokens, owners, bounds = [], [], [], [0]
        kept = 0
        for tree in trees:
            rows += [kept + at for at, _, _ in tree.targets]
            tokens += [token for _, token, _ in tree.targets]
            owners += [bounds[-1] + c for _, _, c in tree.targets]
            kept += len(tree.keep)
            bounds.append(bounds[-1] + tree.num_continuations)
        return cls(
            batch,
            plan,
            torch.tensor(rows, device=device),
            torch.tensor(tokens, device=device),
            np.array(owners, dtype=np.int64),
            tuple(bounds),
        )

    def of_slot(self, slot: str | None) -> RowBatch:
        """The rows, every token belonging to one adapter, or to the bare base."""
        return replace(self.batch, segments=(Segment(slot, 0, self.batch.input_ids.shape[1]),))

    def scores(self, logits: Tensor) -> list[Floats]:
        """Summed log p of every continuation, by tree, from the logits at kept positions."""
        found = logprobs_at(logits, self.rows, self.tokens).double().cpu().numpy()
        sums = np.bincount(self.owners, weights=found, minlength=self.bounds[-1])
        return np.split(sums, self.bounds[1:-1])


NORMALIZED_AT_ONCE = 128
"""Positions whose float32 logits exist at the same time: they stay in a processor's cache."""


def logprobs_at(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """log p of ``tokens`` (P,) at ``rows`` (P,) of ``logits`` (M, vocabulary), float32."""
    parts = logits.split(NORMALIZED_AT_ONCE)
    norms = torch.cat([torch.logsumexp(part.float(), -1) for part in parts])
    return logits[rows, tokens].float() - norms[rows]


def set_apart(trees: Sequence[Tree]) -> tuple[Tree | None, list[Tree]]:
    """What the trunks of all trees begin with, as a tree that wants nothing, and what is left.

    Causality makes it the same for all of them, whatever follows. None where there is nothing, and
    a tree keeps at least the first token it wants something of.
    """
    most = min(tree.keep[0] for tree in trees)
    differs = (at for at in range(most) if len({tree.ids[at] for tree in trees}) > 1)
    length = next(differs, most)
    if not length or len(trees) == 1:
        return None, list(trees)
    shared = Tree(trees[0].ids[:length], tuple(range(length)), (TRUNK,) * length, (), (), 0, 0)
    return shared, [
        replace(
            tree,
            ids=tree.ids[length:],
            positions=tree.positions[length:],
            branches=tree.branches[length:],
            keep=tuple(at - length for at in tree.keep),
        )
        for tree in trees
    ]


def cut(trees: Sequence[Tree], max_tokens: int, max_kept: int) -> list[list[int]]:
    """Indices of trees, longest first, in batches bounded by tokens and by kept positions."""
    batches: list[list[int]] = []
    size = kept = 0
    for index in sorted(range(len(trees)), key=lambda i: -len(trees[i].ids)):
        tree = trees[index]
        fits = size + len(tree.ids) <= max_tokens and kept + len(tree.keep) <= max_kept
        if not batches or not fits:
            batches.append([])
            size = kept = 0
        batches[-1].append(index)
        size += len(tree.ids)
        kept += len(tree.keep)
    return batches


def most_kept(vocab_size: int) -> int:
    """Kept positions of one pass whose logits stay within bounds."""
    return max(1, MAX_LOGITS // vocab_size)
