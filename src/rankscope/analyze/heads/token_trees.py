"""Items of a task as token trees, ready to be scored by whichever model runs them.

A multiple-choice question is a tree: the prompt is its trunk, and every option of two tokens or
more is a branch that sees the prompt and itself (``models/attention/tree.py``). A plain row of text
is a trunk without branches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.evaluate.context_window import EncodedSplit
from rankscope.evaluate.likelihood import Floats, Question, cut_batches
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Row, RowBatch


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One item's tokens, and which of them predict what."""

    ids: tuple[int, ...]  # The trunk, then the branches one after another
    branches: tuple[int, ...]
    """Tokens of each continuation's branch: all but its last token, which predicts nothing. 0 for
    continuations of one token and for repetitions of an earlier one."""
    keep: tuple[int, ...]  # Indices of tokens whose logits are needed, ascending
    targets: tuple[tuple[int, int, int], ...]
    """(index into ``keep``, token id, continuation) of every log-probability."""
    num_continuations: int
    gold: int  # The continuation that is the right answer

    @classmethod
    def of_question(cls, question: Question, gold: int) -> "TokenTree":
        """Prompt and options; the prompt's last token predicts every option's first token."""
        ids = list(question.prompt)
        keep = [len(ids) - 1]
        targets = []
        branches = []
        places: dict[tuple[int, ...], list[int]] = {}  # continuation -> its indices into keep
        for continuation, tokens in enumerate(question.continuations):
            place = places.get(tuple(tokens))
            branches.append(len(tokens) - 1 if place is None else 0)
            if place is None:  # equal options share a branch, so that their scores tie exactly
                place = [0, *range(len(keep), len(keep) + len(tokens) - 1)]
                keep += range(len(ids), len(ids) + len(tokens) - 1)
                ids += tokens[:-1]
                places[tuple(tokens)] = place
            targets += [(at, token, continuation) for at, token in zip(place, tokens, strict=True)]
        return cls(tuple(ids), tuple(branches), tuple(keep), tuple(targets), len(branches), gold)

    @classmethod
    def of_row(cls, row: EncodedRow) -> "TokenTree":
        """A row of text whose labelled tokens are the only continuation."""
        predictions = [(t, row.input_ids[t + 1]) for t in row.label_positions]
        return cls.of_text(row.input_ids, predictions)

    @classmethod
    def of_text(cls, ids: Sequence[int], predictions: Sequence[tuple[int, int]]) -> "TokenTree":
        """A trunk alone; ``predictions`` are pairs of a predicting position and a token."""
        keep = tuple(position for position, _ in predictions)
        targets = tuple((i, token, 0) for i, (_, token) in enumerate(predictions))
        return cls(tuple(ids), (), keep, targets, 1, 0)

    def gold_row(self) -> "TokenTree":
        """The trunk and the right answer alone, as one row of text."""
        trunk = len(self.ids) - sum(self.branches)
        predictions = [(self.keep[k], token) for k, token, c in self.targets if c == self.gold]
        branch = [at for at, _ in predictions if at >= trunk] if self.branches else []
        position = {at: i for i, at in enumerate([*range(trunk), *branch])}
        return TokenTree.of_text(
            [self.ids[at] for at in position], [(position[at], token) for at, token in predictions]
        )

    def without_prefix(self, length: int) -> "TokenTree":
        """The same item without its first ``length`` tokens, which may not be in ``keep``."""
        return replace(self, ids=self.ids[length:], keep=tuple(at - length for at in self.keep))


def token_trees(encoded: EncodedSplit) -> list[TokenTree]:
    """The items of a split: rows of text, or questions with the continuations that the primary
    metric compares."""
    if isinstance(encoded.encoded[0][0], EncodedRow):
        return [TokenTree.of_row(row) for (row,) in encoded.encoded]
    trees = []
    for item, (question,) in zip(encoded.items, encoded.encoded, strict=True):
        assert item.answer is not None
        compared = question.continuations[: len(item.choices)]
        trees.append(TokenTree.of_question(Question(question.prompt, compared), item.answer))
    return trees


@dataclass(frozen=True, slots=True)
class TokenTreeBatch:
    """Trees concatenated for one forward pass; P log-probabilities are wanted."""

    batch: RowBatch
    plan: AttentionPlan
    rows: Tensor  # (P,) index of each wanted log-probability's position among the kept ones
    tokens: Tensor  # (P,) token ids
    owners: npt.NDArray[np.int64]  # (P,) continuation, counted over the whole batch
    bounds: tuple[int, ...]  # Number of continuations before each tree, and in all

    @classmethod
    def of(
        cls, trees: Sequence[TokenTree], device: torch.device, num_shared: int = 0
    ) -> "TokenTreeBatch":
        """Concatenate trees that all continue the same ``num_shared`` tokens."""
        batch = RowBatch.of(
            [Row(t.ids, t.keep, None, num_shared, tuple(filter(None, t.branches))) for t in trees],
            device,
        )
        plan = AttentionPlan.of(batch.lengths, device)
        if batch.branches or num_shared:
            with torch.no_grad():  # gradients are only taken of rows without branches
                plan = plan.with_branches(batch.branches, None, device)
        rows, tokens, owners, bounds = [], [], [], [0]
        num_kept = 0
        for tree in trees:
            rows += [num_kept + at for at, _, _ in tree.targets]
            tokens += [token for _, token, _ in tree.targets]
            owners += [bounds[-1] + c for _, _, c in tree.targets]
            num_kept += len(tree.keep)
            bounds.append(bounds[-1] + tree.num_continuations)
        return cls(
            batch,
            plan,
            torch.tensor(rows, device=device),
            torch.tensor(tokens, device=device),
            np.array(owners, dtype=np.int64),
            tuple(bounds),
        )

    def scores(self, logits: Tensor) -> list[Floats]:
        """Summed log p of every continuation, by tree, from the logits at kept positions."""
        logprobs = logprobs_at(logits, self.rows, self.tokens).cpu().double().numpy()
        sums = np.bincount(self.owners, weights=logprobs, minlength=self.bounds[-1])
        return np.split(sums, self.bounds[1:-1])


NORMALIZED_AT_ONCE = 128
"""Positions whose float32 logits exist at the same time: they stay in a processor's cache."""


def logprobs_at(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """log p of ``tokens`` (P,) at ``rows`` (P,) of ``logits`` (M, vocabulary), float32."""
    parts = logits.split(NORMALIZED_AT_ONCE)
    norms = torch.cat([torch.logsumexp(part.float(), -1) for part in parts])
    return logits[rows, tokens].float() - norms[rows]


def cut_trees(
    trees: Sequence[TokenTree], batch_tokens: int, vocab_size: int
) -> Iterator[list[int]]:
    """Indices of trees, longest first, in batches of limited tokens and logits."""
    sizes = {i: (len(tree.ids), len(tree.keep)) for i, tree in enumerate(trees)}
    return cut_batches(sizes, batch_tokens, vocab_size)
