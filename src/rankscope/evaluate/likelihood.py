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

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import EncodedRow
from rankscope.data.items import Item
from rankscope.errors import IntegrityError
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

    @property
    def num_branch_tokens(self) -> int:
        """Tokens that the model reads after the prompt: all but each continuation's last."""
        return sum(len(ids) - 1 for ids in self.continuations)

    def distinct(self) -> "Question":
        """Every continuation once: equal ones tie, however rounding depends on their position."""
        return Question(self.prompt, list(dict.fromkeys(map(tuple, self.continuations))))


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions scored in one pass: each a row whose longer continuations are branches.

    A branch feeds all but its last token. The prompt's last logits predict the first token of every
    continuation, and a branch's logits predict the rest.
    """

    indices: tuple[int, ...]
    """Which questions, in the caller's order."""
    counts: tuple[int, ...]
    """Continuations of each question."""
    rows: RowBatch
    sources: Tensor
    """(C,) which row of the logits predicts each continuation token."""
    targets: Tensor
    """(C,) token ids."""
    owners: npt.NDArray[np.int64]
    """(C,) which continuation of the batch each token belongs to."""

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        indices: Sequence[int],
        num_shared: int,
        device: torch.device,
    ) -> "QuestionBatch":
        """The pass of the questions at ``indices``; a cache holds their first ``num_shared``
        tokens."""
        rows: list[Row] = []
        sources: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        owner = kept = 0
        for question in (questions[i] for i in indices):
            trunk = question.prompt[num_shared:]
            branches = [ids[:-1] for ids in question.continuations if len(ids) > 1]
            first, kept = kept, kept + 1
            for ids in question.continuations:
                sources += [first, *range(kept, kept + len(ids) - 1)]
                targets += ids
                owners += [owner] * len(ids)
                kept += len(ids) - 1
                owner += 1
            ids = [*trunk, *(token for branch in branches for token in branch)]
            keep = range(len(trunk) - 1, len(ids))
            rows.append(Row(ids, keep, None, num_shared, [len(branch) for branch in branches]))
        return cls(
            indices=tuple(indices),
            counts=tuple(len(questions[i].continuations) for i in indices),
            rows=RowBatch.of(rows, device),
            sources=torch.tensor(sources, device=device),
            targets=torch.tensor(targets, device=device),
            owners=np.array(owners, dtype=np.int64),
        )

    def run(
        self, base: Base, adapter_name: str | None, prefix: KVCache | None, *, greedy: bool
    ) -> tuple[Floats, Floats | None]:
        """Summed log p of every continuation, and how many of its tokens are not the likeliest.

        (continuations,) each under one model; the second is None unless ``greedy``.
        """
        logits = base.logits(for_adapter(self.rows, adapter_name), prefix=prefix)
        totals = self._sum_by_owner(token_logprobs(logits, self.sources, self.targets))
        if not greedy:
            return totals, None
        missed = logits.argmax(-1)[self.sources] != self.targets
        return totals, self._sum_by_owner(missed.cpu().double().numpy())

    def _sum_by_owner(self, values: Floats) -> Floats:
        sums = np.bincount(self.owners, weights=values, minlength=sum(self.counts))
        return sums.astype(np.float64)


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Batches of questions whose prompts begin with the same tokens."""

    prefix: RowBatch | None
    """These tokens, one row; None if every prompt is computed whole."""
    batches: tuple[QuestionBatch, ...]

    def compute_prefix(self, base: Base, adapter_name: str | None) -> KVCache | None:
        """The prefix's keys and values under one model."""
        if self.prefix is None:
            return None
        cache = KVCache(1, self.prefix.lengths[0])
        base.logits(for_adapter(self.prefix, adapter_name), cache, store=True)
        return cache


def prefix_groups(
    questions: Sequence[Question], batch_tokens: int, vocab_size: int, device: torch.device
) -> Iterator[PrefixGroup]:
    """Questions by common prefix, in passes of at most ``batch_tokens`` tokens."""
    for shared in find_shared_prefixes([question.prompt for question in questions]):
        prefix = None
        if shared.length:
            row = Row(questions[shared.members[0]].prompt[: shared.length], [])
            prefix = RowBatch.of([row], device)
        sizes = {
            i: (
                len(questions[i].prompt) - shared.length + questions[i].num_branch_tokens,
                1 + questions[i].num_branch_tokens,
            )
            for i in shared.members
        }
        parts = cut_batches(sizes, batch_tokens, vocab_size)
        yield PrefixGroup(
            prefix,
            tuple(QuestionBatch.of(questions, part, shared.length, device) for part in parts),
        )


def cut_batches(
    sizes: dict[int, tuple[int, int]], batch_tokens: int, vocab_size: int
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


def for_adapter(batch: RowBatch, adapter_name: str | None) -> RowBatch:
    """The same batch with every token belonging to one adapter, or to the bare base."""
    return replace(batch, segments=(AdapterSpan(adapter_name, 0, batch.input_ids.shape[1]),))


def token_logprobs(logits: Tensor, rows: Tensor | None, tokens: Tensor) -> Floats:
    """log p of ``tokens`` (C,) under ``logits[rows]``, by a float32 log-softmax, as float64.

    ``rows`` None pairs token i with logits row i.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    if rows is None:
        rows = torch.arange(len(tokens), device=tokens.device)
    return logprobs[rows, tokens].cpu().double().numpy()


@dataclass(slots=True)
class ContinuationLogprobs:
    """Summed log p of every continuation of every question under one model."""

    values: list[Floats]
    """Per question, (continuations,)."""
    missed: list[Floats]
    """Per question, (continuations,): tokens that greedy decoding would not write; empty arrays
    unless requested."""
    seconds: float = 0.0
    num_tokens: int = 0
    """Tokens computed, padding not counted."""

    def put(self, batch: QuestionBatch, totals: Floats, missed: Floats | None) -> None:
        """Store the results of a pass."""
        bounds = np.cumsum(batch.counts)[:-1]
        for stored, values in ((self.values, totals), (self.missed, missed)):
            if values is not None:
                for index, part in zip(batch.indices, np.split(values, bounds), strict=True):
                    stored[index] = part
        self.num_tokens += sum(batch.rows.lengths)


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
    empty = [np.zeros(0)] * len(questions)
    by_model = {name: ContinuationLogprobs(list(empty), list(empty)) for name in adapter_names}
    distinct = [question.distinct() for question in questions]
    for group in prefix_groups(distinct, batch_tokens, base.record.vocab_size, base.device):
        for name, logprobs in by_model.items():
            started = time.perf_counter()
            prefix = group.compute_prefix(base, name)
            logprobs.num_tokens += 0 if group.prefix is None else group.prefix.lengths[0]
            for batch in group.batches:
                logprobs.put(batch, *batch.run(base, name, prefix, greedy=greedy))
            logprobs.seconds += time.perf_counter() - started
    for index, (question, once) in enumerate(zip(questions, distinct, strict=True)):
        place = {ids: n for n, ids in enumerate(once.continuations)}
        repeated = [place[tuple(ids)] for ids in question.continuations]
        for logprobs in by_model.values():
            for stored in (logprobs.values, logprobs.missed) if greedy else (logprobs.values,):
                stored[index] = stored[index][repeated]
    return by_model


def row_logprobs(
    base: Base,
    rows: Sequence[EncodedRow],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, tuple[Floats, float]]:
    """Summed log p of every row's labelled tokens, (rows,), under every model, and its seconds."""
    totals: dict[str | None, Floats] = {name: np.zeros(len(rows)) for name in adapter_names}
    seconds = dict.fromkeys(adapter_names, 0.0)
    sizes = {i: (len(row.input_ids), sum(row.is_label)) for i, row in enumerate(rows)}
    for indices in cut_batches(sizes, batch_tokens, base.record.vocab_size):
        kept_rows = [
            Row(row.input_ids, [t - 1 for t, is_label in enumerate(row.is_label) if is_label])
            for row in (rows[i] for i in indices)
        ]
        batch = RowBatch.of(kept_rows, base.device)
        targets = torch.tensor(
            [row.ids[t + 1] for row in kept_rows for t in row.keep], device=base.device
        )
        owners = np.repeat(indices, [len(row.keep) for row in kept_rows])
        for name, total in totals.items():
            started = time.perf_counter()
            logprobs = token_logprobs(base.logits(for_adapter(batch, name)), None, targets)
            total += np.bincount(owners, weights=logprobs, minlength=len(rows))
            seconds[name] += time.perf_counter() - started
    return {name: (total, seconds[name]) for name, total in totals.items()}


def check_finite(items: Iterable[Item], totals: Iterable[float], adapter_name: str | None) -> None:
    """Raise IntegrityError for a model whose log-probabilities are not finite."""
    for item, total in zip(items, totals, strict=True):
        if not np.isfinite(total):
            model = "the base" if adapter_name is None else f"adapter {adapter_name}"
            raise IntegrityError(
                f"{model}: log-probabilities of {item.item_id} are not finite; its weights have "
                "diverged, so it cannot be scored"
            )
