"""The items of a task as rows whose log-probabilities are wanted, for whichever model runs them.

A question is a tree: its prompt is the trunk and every option of two tokens or more a branch
(``models/branched_rows.py``). A row of text is a trunk alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.evaluate.context_window import EncodedSplit
from rankscope.evaluate.likelihood import MAX_LOGITS, Question
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Row, RowBatch
from rankscope.models.multi_lora import AdapterSpan

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tree:
    """One item's tokens, and which of them predict what."""

    ids: tuple[int, ...]
    """The trunk, then the branches one after another."""
    branches: tuple[int, ...]
    """Tokens of each branch, in the order of the continuations; 0 where one token is all, and where
    an equal one came before."""
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
        ids = list(question.prompt)
        keep = [len(ids) - 1]
        targets = []
        branches = []
        places: dict[tuple[int, ...], list[int]] = {}
        for continuation, tokens in enumerate(question.continuations):
            own = places.get(tuple(tokens))
            branches.append(len(tokens) - 1 if own is None else 0)
            if own is None:  # equal options tie, whatever a product's rounding does by place
                own = [0, *range(len(keep), len(keep) + len(tokens) - 1)]
                keep += range(len(ids), len(ids) + len(tokens) - 1)
                ids += tokens[:-1]
                places[tuple(tokens)] = own
            pairs = zip(own, tokens, strict=True)
            targets += [(place, token, continuation) for place, token in pairs]
        return cls(tuple(ids), tuple(branches), tuple(keep), tuple(targets), len(branches), gold)

    @classmethod
    def of_row(cls, row: EncodedRow) -> "Tree":
        """A row of text; its labelled tokens are the one continuation."""
        labels = [t for t, kept in enumerate(row.is_label) if kept]
        return cls(
            tuple(row.input_ids),
            (),
            tuple(t - 1 for t in labels),
            tuple((i, row.input_ids[t], 0) for i, t in enumerate(labels)),
            1,
            0,
        )

    def gold_row(self) -> "Tree":
        """The trunk and the right answer alone, as one row of text."""
        trunk = len(self.ids) - sum(self.branches)
        found = [(self.keep[k], token) for k, token, c in self.targets if c == self.gold]
        own = [at for at, _ in found if at >= trunk] if self.branches else []
        place = {token: i for i, token in enumerate([*range(trunk), *own])}
        return Tree(
            tuple(self.ids[t] for t in place),
            (),
            tuple(place[at] for at, _ in found),
            tuple((i, token, 0) for i, (_, token) in enumerate(found)),
            1,
            0,
        )

    def after(self, num_shared: int) -> "Tree":
        """The same item without its first tokens, none of which is kept."""
        keep = tuple(at - num_shared for at in self.keep)
        return replace(self, ids=self.ids[num_shared:], keep=keep)


def trees_of(encoded: EncodedSplit) -> list[Tree]:
    """The items of a split as trees: multiple choice, of which the continuations that the headline
    metric compares are taken, or rows of text."""
    if isinstance(encoded.encoded[0], EncodedRow):
        return [Tree.of_row(row) for row in encoded.encoded]
    trees = []
    for item, (question,) in zip(encoded.items, encoded.encoded, strict=True):
        assert item.answer is not None
        compared = question.continuations[: len(item.choices)]
        trees.append(Tree.of_question(Question(question.prompt, compared), item.answer))
    return trees


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Trees concatenated for one pass."""

    batch: RowBatch
    plan: AttentionPlan
    rows: Tensor
    """(P,) which kept position each wanted log-probability is at."""
    tokens: Tensor
    """(P,) token ids."""
    owners: npt.NDArray[np.int64]
    """(P,) continuation, counted over the whole batch."""
    bounds: tuple[int, ...]
    """Continuations of all trees before each, and of all."""

    @classmethod
    def of(cls, trees: Sequence[Tree], device: torch.device, num_shared: int = 0) -> "TreeBatch":
        """Concatenate trees, which all come after the same ``num_shared`` tokens."""
        batch = RowBatch.of(
            [Row(t.ids, t.keep, None, num_shared, tuple(filter(None, t.branches))) for t in trees],
            device,
        )
        plan = AttentionPlan.of(batch.lengths, device)
        if batch.branches or num_shared:
            with torch.no_grad():  # gradients are asked of rows without branches alone
                plan = plan.branched(batch.branches, None, device)
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

    def for_adapter(self, adapter_name: str | None) -> RowBatch:
        """The rows, every token belonging to one adapter, or to the bare base."""
        return replace(
            self.batch, segments=(AdapterSpan(adapter_name, 0, self.batch.input_ids.shape[1]),)
        )

    def scores(self, logits: Tensor) -> list[Floats]:
        """Summed log p of every continuation, by tree, from the logits at kept positions."""
        found = logprobs_at(logits, self.rows, self.tokens).cpu().double().numpy()
        sums = np.bincount(self.owners, weights=found, minlength=self.bounds[-1])
        return np.split(sums, self.bounds[1:-1])


NORMALIZED_AT_ONCE = 128
"""Positions whose float32 logits exist at the same time: they stay in a processor's cache."""


def logprobs_at(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """log p of ``tokens`` (P,) at ``rows`` (P,) of ``logits`` (M, vocabulary), float32."""
    parts = logits.split(NORMALIZED_AT_ONCE)
    norms = torch.cat([torch.logsumexp(part.float(), -1) for part in parts])
    return logits[rows, tokens].float() - norms[rows]


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
