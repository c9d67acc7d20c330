"""Items as token trees, which are concatenated for one forward pass.

A multiple-choice question is a tree. The prompt is its trunk, and every option of two tokens or
more is a branch that sees the prompt and itself (``models/attention/products.py``). A plain row of
text is a trunk without branches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.models.base import Row, RowBatch

MAX_LOGITS = 2**26  # Most logits of one pass, 256 MB in float32, under large vocabularies
MAX_LOGITS_CUDA = 2**28  # With 128,000 entries 2,000 positions, which fill a GPU

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """One item's tokens, and the tokens that they predict."""

    ids: tuple[int, ...]  # The trunk, then the branches one after another
    branches: tuple[int, ...]
    """Tokens of each continuation's branch: all but its last token, which predicts nothing. It is 0
    for continuations of one token and for repetitions of an earlier one."""
    keep: tuple[int, ...]  # Indices of tokens whose logits are needed, ascending
    targets: tuple[tuple[int, int, int], ...]  # (index into keep, token, continuation)
    num_continuations: int
    gold: int  # The continuation that is the right answer

    @classmethod
    def of_question(
        cls, prompt: Sequence[int], continuations: Sequence[Sequence[int]], gold: int = 0
    ) -> "TokenTree":
        """Make a tree of prompt and options; the prompt's last token predicts each option's first
        token."""
        ids = list(prompt)
        keep = [len(ids) - 1]
        targets = []
        branches = []
        places: dict[tuple[int, ...], list[int]] = {}  # continuation -> its indices into keep
        for continuation, tokens in enumerate(continuations):
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
        predictions = [(t, row.input_ids[t + 1]) for t in row.label_positions]
        return cls.of_text(row.input_ids, predictions)

    @classmethod
    def of_text(cls, ids: Sequence[int], predictions: Sequence[tuple[int, int]]) -> "TokenTree":
        """Make a trunk alone; ``predictions`` are pairs of a predicting position and a token."""
        keep = tuple(position for position, _ in predictions)
        targets = tuple((i, token, 0) for i, (_, token) in enumerate(predictions))
        return cls(tuple(ids), (), keep, targets, 1, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Number of tokens, and of positions whose logits are kept."""
        return len(self.ids), len(self.keep)

    def gold_row(self) -> "TokenTree":
        """Return the trunk and the right answer alone, as one row of text."""
        trunk = len(self.ids) - sum(self.branches)
        predictions = [(self.keep[k], token) for k, token, c in self.targets if c == self.gold]
        branch = [at for at, _ in predictions if at >= trunk] if self.branches else []
        position = {at: i for i, at in enumerate([*range(trunk), *branch])}
        return TokenTree.of_text(
            [self.ids[at] for at in position], [(position[at], token) for at, token in predictions]
        )

    def without_prefix(self, length: int) -> "TokenTree":
        """Return the item without its first ``length`` tokens, which may not be in ``keep``."""
        return replace(self, ids=self.ids[length:], keep=tuple(at - length for at in self.keep))


@dataclass(frozen=True, slots=True)
class TokenTreeBatch:
    """Trees concatenated for one forward pass; T log-probabilities are wanted."""

    rows: RowBatch
    sources: Tensor  # (T,) which of the kept positions predicts each target
    targets: Tensor  # (T,) token ids
    owners: npt.NDArray[np.int64]  # (T,) continuation, counted over the whole batch
    bounds: tuple[int, ...]  # Number of continuations before each tree, and in all

    @classmethod
    def of(
        cls, trees: Sequence[TokenTree], device: torch.device, num_shared: int = 0
    ) -> "TokenTreeBatch":
        """Concatenate trees that all continue the same ``num_shared`` tokens."""
        rows = [Row(t.ids, t.keep, None, num_shared, [*filter(None, t.branches)]) for t in trees]
        sources, targets, owners, bounds = [], [], [], [0]
        num_kept = 0
        for tree in trees:
            sources += [num_kept + at for at, _, _ in tree.targets]
            targets += [token for _, token, _ in tree.targets]
            owners += [bounds[-1] + c for _, _, c in tree.targets]
            num_kept += len(tree.keep)
            bounds.append(bounds[-1] + tree.num_continuations)
        return cls(
            RowBatch.of(rows, device),
            torch.tensor(sources, dtype=torch.int64, device=device),
            torch.tensor(targets, dtype=torch.int64, device=device),
            np.array(owners, dtype=np.int64),
            tuple(bounds),
        )

    def sums(self, values: Tensor) -> list[Floats]:
        """Sum the values of the targets, (T,), by continuation, for each tree."""
        weights = values.cpu().double().numpy()
        sums = np.bincount(self.owners, weights=weights, minlength=self.bounds[-1])
        return np.split(sums.astype(np.float64), self.bounds[1:-1])


NORMALIZED_AT_ONCE = 128  # Positions in float32 at a time: they stay in a CPU cache


def logprobs_at(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return log p of ``tokens`` (P,) at ``rows`` (P,) of ``logits`` (M, vocabulary), float32."""
    parts = logits.split(NORMALIZED_AT_ONCE)
    norms = torch.cat([torch.logsumexp(part.float(), -1) for part in parts])
    return logits[rows, tokens].float() - norms[rows]


def most_kept(vocab_size: int, device: torch.device) -> int:
    """Return the most positions of a pass whose logits are kept."""
    return max(1, (MAX_LOGITS_CUDA if device.type == "cuda" else MAX_LOGITS) // vocab_size)


def cut_batches(
    sizes: Sequence[tuple[int, int]], batch_tokens: int, max_kept: int
) -> Iterator[list[int]]:
    """Yield batches of items with limited tokens and logits, longest items first, as indices.

    ``sizes`` are (tokens, positions whose logits are kept). A longer item is its own batch.
    """
    batch: list[int] = []
    num_tokens = num_kept = 0
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        tokens, kept = sizes[index]
        if batch and (num_tokens + tokens > batch_tokens or num_kept + kept > max_kept):
            yield batch
            batch, num_tokens, num_kept = [], 0, 0
        batch.append(index)
        num_tokens += tokens
        num_kept += kept
    if batch:
        yield batch
