"""log p of continuations and of rows, under many models.

A question is one row that branches: its prompt, then its continuations side by side, each with
attention to the prompt and itself. The logits at the prompt's last token score the first token of
every continuation, so letters and one-token options cost nothing more. A common beginning of
prompts (the examples before every question of a subject) is computed once per model and kept as
keys and values, see ``prefix_sharing.py``.

Batches are cut once, and every model runs through the same ones, one model per pass. So a model's
scores do not depend on the other models, an adapter with B = 0 gives the base's scores bit for bit,
and differences between models are never differences between batches. Items fill the passes; mixing
models in one would only slice the adapters' products finer.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.data.items import Item
from rankscope.errors import NotFiniteError
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.multi_lora import AdapterSpan

MAX_LOGITS = 2**26
"""Most logits of one pass, 256 MB in float32: limits kept positions under large vocabularies."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the continuations to score after it, as token ids."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def num_tokens(self) -> int:
        """Of the longest row: what must fit into the model's context."""
        return len(self.prompt) + max(map(len, self.continuations))


@dataclass(frozen=True, slots=True)
class TargetBatch:
    """Rows of one pass, and the tokens whose log p is wanted."""

    rows: RowBatch
    sources: Tensor | None
    """(T,) which row of the logits predicts each target; None: row i predicts target i."""
    targets: Tensor  # (T,) token ids
    owners: npt.NDArray[np.int64]  # (T,) which sum each target's log p belongs to

    @classmethod
    def of_questions(
        cls,
        questions: Sequence[Question],
        starts: Sequence[int],
        num_shared: int,
        device: torch.device,
    ) -> "TargetBatch":
        """One row per question; a cache holds the first ``num_shared`` tokens of the prompts.

        Continuations of two or more tokens are branches, which feed all but their last token. The
        prompt's last logits predict the first token of every continuation, and a branch's logits
        predict the rest. ``starts``: the sum of each question's first continuation.
        """
        rows: list[Row] = []
        sources: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        kept = 0
        for question, start in zip(questions, starts, strict=True):
            trunk = question.prompt[num_shared:]
            branches = [ids[:-1] for ids in question.continuations if len(ids) > 1]
            first, kept = kept, kept + 1
            for owner, ids in enumerate(question.continuations, start):
                sources += [first, *range(kept, kept + len(ids) - 1)]
                targets += ids
                owners += [owner] * len(ids)
                kept += len(ids) - 1
            ids = [*trunk, *(token for branch in branches for token in branch)]
            keep = range(len(trunk) - 1, len(ids))
            rows.append(Row(ids, keep, None, num_shared, [len(branch) for branch in branches]))
        return cls(
            rows=RowBatch.of(rows, device),
            sources=torch.tensor(sources, device=device),
            targets=torch.tensor(targets, device=device),
            owners=np.array(owners, dtype=np.int64),
        )

    @classmethod
    def of_rows(
        cls, rows: Sequence[EncodedRow], owners: Sequence[int], device: torch.device
    ) -> "TargetBatch":
        """The labelled tokens of rows; row i belongs to sum ``owners[i]``."""
        kept_rows = [Row(row.input_ids, row.label_positions) for row in rows]
        targets = [row.ids[t + 1] for row in kept_rows for t in row.keep]
        return cls(
            rows=RowBatch.of(kept_rows, device),
            sources=None,
            targets=torch.tensor(targets, device=device),
            owners=np.repeat(owners, [len(row.keep) for row in kept_rows]),
        )


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Batches of rows that begin with the same tokens."""

    prefix: RowBatch | None  # These tokens, one row; None if every row is computed whole
    batches: Iterable[TargetBatch]


@dataclass(slots=True)
class SummedLogprobs:
    """What one model gives."""

    totals: Floats  # Sums of log p, nats
    missed: Floats
    """Per sum, its tokens that greedy decoding would not write; zeros unless requested."""
    seconds: float = 0.0
    num_tokens: int = 0  # Tokens computed, padding not counted

    def add(self, base: Base, name: str | None, group: PrefixGroup, *, greedy: bool) -> None:
        """Run the batches of a group under the adapter of this name."""
        started = time.perf_counter()
        prefix = None
        if group.prefix is not None:
            prefix = KVCache(1, group.prefix.lengths[0])
            base.logits(for_adapter(group.prefix, name), prefix, store=True)
            self.num_tokens += group.prefix.lengths[0]
        for batch in group.batches:
            logits = base.logits(for_adapter(batch.rows, name), prefix=prefix)
            sources = batch.sources
            if sources is None:
                sources = torch.arange(len(batch.targets), device=logits.device)
            logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            self.totals += self._by_owner(batch, logprobs[sources, batch.targets])
            if greedy:
                self.missed += self._by_owner(batch, logits.argmax(-1)[sources] != batch.targets)
            self.num_tokens += sum(batch.rows.lengths)
        self.seconds += time.perf_counter() - started

    def _by_owner(self, batch: TargetBatch, values: Tensor) -> Floats:
        weights = values.cpu().double().numpy()
        sums = np.bincount(batch.owners, weights=weights, minlength=len(self.totals))
        return sums.astype(np.float64)


def sum_logprobs(
    base: Base,
    groups: Iterable[PrefixGroup],
    num_sums: int,
    adapter_names: Sequence[str | None],
    *,
    greedy: bool = False,
) -> dict[str | None, SummedLogprobs]:
    """Run the same batches under every model."""
    by_model = {
        name: SummedLogprobs(np.zeros(num_sums), np.zeros(num_sums)) for name in adapter_names
    }
    for group in groups:
        for name, logprobs in by_model.items():
            logprobs.add(base, name, group, greedy=greedy)
    return by_model


def for_adapter(batch: RowBatch, adapter_name: str | None) -> RowBatch:
    """The same batch with every token belonging to one adapter, or to the bare base."""
    return replace(batch, segments=(AdapterSpan(adapter_name, 0, batch.input_ids.shape[1]),))


def cut_batches(
    sizes: Mapping[int, tuple[int, int]], batch_tokens: int, vocab_size: int
) -> Iterator[list[int]]:
    """Keys of ``sizes``, longest first, in batches of limited tokens and kept positions.

    Args:
        sizes: index -> (tokens, positions whose logits are kept).
        batch_tokens: most tokens of a batch; a longer row is a batch of its own.
        vocab_size: logits of one kept position.
    """
    max_kept = max(1, MAX_LOGITS // vocab_size)
    batch: list[int] = []
    num_tokens = num_kept = 0
    for index in sorted(sizes, key=lambda i: -sizes[i][0]):
        tokens, kept = sizes[index]
        if batch and (num_tokens + tokens > batch_tokens or num_kept + kept > max_kept):
            yield batch
            batch, num_tokens, num_kept = [], 0, 0
        batch.append(index)
        num_tokens += tokens
        num_kept += kept
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class ContinuationLogprobs:
    """Summed log p of every continuation of every question under one model."""

    values: list[Floats]  # Per question, (continuations,)
    missed: list[Floats]
    """Per question, (continuations,): tokens that greedy decoding would not write; zeros unless
    requested."""
    seconds: float
    num_tokens: int


def continuation_logprobs(
    base: Base,
    questions: Sequence[Question],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
    *,
    greedy: bool = False,
) -> dict[str | None, ContinuationLogprobs]:
    """log p(continuation | prompt) in nats, summed over its tokens, under every model.

    Args:
        base: carries the adapters of ``adapter_names``; None among them is the bare base.
        questions: prompts of at least one token, continuations of at least one token each.
        adapter_names: distinct.
        batch_tokens: most tokens of a pass; a longer row, or a longer prefix, runs alone.
        greedy: compute ``missed`` too.
    """
    # Equal continuations are computed once: they tie, however rounding depends on the position.
    distinct = [
        Question(q.prompt, list(dict.fromkeys(map(tuple, q.continuations)))) for q in questions
    ]
    starts = [0, *itertools.accumulate(len(question.continuations) for question in distinct)]
    groups = prefix_groups(distinct, starts, batch_tokens, base)
    sums = sum_logprobs(base, groups, starts[-1], adapter_names, greedy=greedy)
    places = []
    for question, once, start in zip(questions, distinct, starts, strict=False):
        place = {ids: start + n for n, ids in enumerate(once.continuations)}
        places.append([place[tuple(ids)] for ids in question.continuations])
    return {
        name: ContinuationLogprobs(
            values=[logprobs.totals[of_question] for of_question in places],
            missed=[logprobs.missed[of_question] for of_question in places],
            seconds=logprobs.seconds,
            num_tokens=logprobs.num_tokens,
        )
        for name, logprobs in sums.items()
    }


def prefix_groups(
    questions: Sequence[Question], starts: Sequence[int], batch_tokens: int, base: Base
) -> Iterator[PrefixGroup]:
    """Questions by common prefix. ``starts``: the sum of each question's first continuation."""
    for shared in find_shared_prefixes([question.prompt for question in questions]):
        length = shared.length
        prefix = None
        if length:
            row = Row(questions[shared.members[0]].prompt[:length], [])
            prefix = RowBatch.of([row], base.device)
        sizes = {}
        for i in shared.members:
            branched = sum(len(ids) - 1 for ids in questions[i].continuations)
            sizes[i] = (len(questions[i].prompt) - length + branched, 1 + branched)
        batches = [
            TargetBatch.of_questions(
                [questions[i] for i in part], [starts[i] for i in part], length, base.device
            )
            for part in cut_batches(sizes, batch_tokens, base.record.vocab_size)
        ]
        yield PrefixGroup(prefix, batches)


def row_logprobs(
    base: Base, rows: Sequence[EncodedRow], adapter_names: Sequence[str | None], batch_tokens: int
) -> dict[str | None, SummedLogprobs]:
    """Summed log p of every row's labelled tokens under every model."""
    sizes = {i: (len(row.input_ids), sum(row.is_label)) for i, row in enumerate(rows)}
    groups = (
        PrefixGroup(None, [TargetBatch.of_rows([rows[i] for i in part], part, base.device)])
        for part in cut_batches(sizes, batch_tokens, base.record.vocab_size)
    )
    return sum_logprobs(base, groups, len(rows), adapter_names)


def check_finite_logprobs(
    items: Iterable[Item], totals: Iterable[float], adapter_name: str | None
) -> None:
    """Raise NotFiniteError for a model whose log-probabilities are not finite."""
    for item, total in zip(items, totals, strict=True):
        if not np.isfinite(total):
            model = "the model" if adapter_name is None else f"adapter {adapter_name}"
            raise NotFiniteError(
                f"{model}: log-probabilities of {item.item_id} are not finite, so it cannot be "
                "scored; its weights diverged, or 'dtype' is too narrow for it"
            )
