"""log p of continuations and of rows, under many models.

A question is one row that branches: its prompt, then its continuations side by side, each with
attention to the prompt and itself. The logits at the prompt's last token score the first token of
every continuation, so letters and one-token options cost nothing more. A common beginning of
prompts, such as the examples before every question of a subject, is computed once per model. Its
keys and values are kept, see ``prefix_sharing.py``.

Batches are cut once, and every model runs through the same batches, one model per pass. So a
model's scores do not depend on the other models, and an adapter with B = 0 gives the base's scores
bit for bit. Differences between models are never differences between batches. Items fill the
passes; mixing models in one would only slice the adapters' products finer.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from rankscope.data.encode import EncodedRow
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import Floats, TokenTree, TokenTreeBatch, cut_batches, most_kept
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.multi_lora import AdapterSpan

PrefixGroup = tuple[RowBatch | None, Sequence[tuple[Sequence[int], TokenTreeBatch]]]
"""A prefix, as one row, and the batches that continue it, each with the indices of its items. The
prefix is None if every row is computed whole."""


class SummedLogprobs:
    def __init__(self, num_items: int) -> None:
        self.values: list[Floats] = [np.zeros(0)] * num_items  # Summed log p, nats
        # Tokens that greedy decoding would not write, if requested.
        self.missed: list[Floats] = [np.zeros(0)] * num_items
        self.seconds = 0.0
        self.num_tokens = 0  # Computed, padding not counted

    @property
    def totals(self) -> Floats:
        """Summed log p of all continuations, in order."""
        return np.concatenate([np.zeros(0), *self.values])

    def add(
        self, base: Base, name: str | None, group: PrefixGroup, *, greedy: bool = False
    ) -> None:
        started = time.perf_counter()
        prefix, batches = group
        cache = None
        if prefix is not None:
            cache = KVCache(1, prefix.lengths[0])
            base.logits(for_adapter(prefix, name), cache, store=True)
            self.num_tokens += prefix.lengths[0]
        for members, batch in batches:
            logits = base.logits(for_adapter(batch.rows, name), prefix=cache)
            logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            sums = batch.sums(logprobs[batch.sources, batch.targets])
            for item, values in zip(members, sums, strict=True):
                self.values[item] = values
            if greedy:
                misses = batch.sums(logits.argmax(-1)[batch.sources] != batch.targets)
                for item, values in zip(members, misses, strict=True):
                    self.missed[item] = values
            self.num_tokens += sum(batch.rows.lengths)
        self.seconds += time.perf_counter() - started


def _sum_logprobs(
    base: Base,
    groups: Iterable[PrefixGroup],
    num_items: int,
    adapter_names: Sequence[str | None],
    *,
    greedy: bool = False,
) -> dict[str | None, SummedLogprobs]:
    by_model = {name: SummedLogprobs(num_items) for name in adapter_names}
    for group in groups:
        for name, logprobs in by_model.items():
            logprobs.add(base, name, group, greedy=greedy)
    return by_model


def for_adapter(batch: RowBatch, adapter_name: str | None) -> RowBatch:
    """Return the batch with every token belonging to one adapter, or to the bare base."""
    return replace(batch, segments=(AdapterSpan(adapter_name, 0, batch.input_ids.shape[1]),))


def continuation_logprobs(
    base: Base,
    questions: Sequence[Question],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
    *,
    greedy: bool = False,
) -> dict[str | None, SummedLogprobs]:
    """Compute log p(continuation | prompt) in nats, summed over its tokens, under every model.

    Args:
        questions: prompts and continuations with at least one token each.
        adapter_names: distinct adapters, attached to ``base``; None is the bare base.
        batch_tokens: a row, or a prefix, that is longer runs alone.
        greedy: count ``missed`` tokens, too.
    """
    trees = [TokenTree.of_question(q.prompt, q.continuations) for q in questions]
    groups = prefix_groups(trees, batch_tokens, base)
    return _sum_logprobs(base, groups, len(questions), adapter_names, greedy=greedy)


def prefix_groups(
    trees: Sequence[TokenTree], batch_tokens: int, base: Base
) -> Iterator[PrefixGroup]:
    prompts = [tree.ids[: tree.keep[0] + 1] for tree in trees]
    max_kept = most_kept(base.record.vocab_size, base.device)
    for length, members in find_shared_prefixes(prompts, base.packs):
        prefix = None
        if length:
            row = Row(prompts[members[0]][:length], [])
            prefix = RowBatch.of([row], base.device)
        rest = [trees[i].without_prefix(length) for i in members]
        sizes = [tree.size for tree in rest]
        batches = []
        for part in cut_batches(sizes, batch_tokens, max_kept):
            batch = TokenTreeBatch.of([rest[i] for i in part], base.device, length)
            batches.append(([members[i] for i in part], batch))
        yield prefix, batches


def row_logprobs(
    base: Base, rows: Sequence[EncodedRow], adapter_names: Sequence[str | None], batch_tokens: int
) -> dict[str | None, SummedLogprobs]:
    """Sum log p of every row's labeled tokens under every model."""
    sizes = [(len(row.input_ids), sum(row.is_label)) for row in rows]
    max_kept = most_kept(base.record.vocab_size, base.device)
    parts = cut_batches(sizes, batch_tokens, max_kept)
    trees = ((part, [TokenTree.of_row(rows[i]) for i in part]) for part in parts)
    groups = ((None, [(part, TokenTreeBatch.of(of, base.device))]) for part, of in trees)
    return _sum_logprobs(base, groups, len(rows), adapter_names)
