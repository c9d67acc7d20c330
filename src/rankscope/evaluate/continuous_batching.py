"""Generation by continuous batching: many prompts, many models, one token each per step.

Sequences of all models wait in one queue, and as many run together as the cache holds. Finished
sequences leave, and waiting ones take their room. The keys and values are in a :class:`KVCache`
whose rows follow the order of the running sequences; sequences of one adapter are neighbors. The
common beginning of prompts is computed once per model, see ``prefix_sharing.py``.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.prefix_sharing import SharedPrefix, find_shared_prefixes
from rankscope.models.attention.varlen import KVCache, cached_values_per_token
from rankscope.models.base import Base, Row, RowBatch, batches_of
from rankscope.models.multi_lora import AdapterSpan
from rankscope.models.parameters import nbytes

CACHED_PER_BATCH_TOKEN = 16  # Most tokens of a cache over ``batch_tokens``
CACHE_BYTES = 2**30
"""Most bytes of keys and values, or the bytes of the weights if those are more. A step reads both,
so twice as many keys and values would make each token at most a quarter cheaper."""
GROWTH = 32  # Steps of room in a newly allocated cache
COPIED_LAYERS = 2  # Layers copied at a time: one layer's old rows, and their copy
SPARE = 8  # The cache is rebuilt once one in so many of its rows has finished


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    max_new_tokens: int
    context: int  # Most tokens of prompt and answer together
    batch_tokens: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()

    @property
    def tail(self) -> int:
        """Number of last tokens that can hold the end of a stop string: each token is a byte or
        more."""
        return max((len(text.encode()) for text in self.stop_strings), default=0) + 1


@dataclass(slots=True)
class Generation:
    adapter_name: str | None
    prompt: Sequence[int]
    max_new_tokens: int
    shared: SharedPrefix = (0, ())  # Prompts with the same beginning, computed once
    ids: list[int] = field(default_factory=list)  # Generated tokens without the stop token
    stopped: bool = False  # Ended by a stop token or stop string, not by a limit
    text: str = ""

    @property
    def is_finished(self) -> bool:
        return self.stopped or len(self.ids) >= self.max_new_tokens

    @property
    def max_tokens(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    @property
    def prefix_key(self) -> object:
        """Key that is equal for sequences with the same computed prefix; None: nothing is
        shared."""
        length, members = self.shared
        return (self.adapter_name, members) if length else None

    def accept(self, token: int, batch: "RunningBatch") -> None:
        if token in batch.limits.stop_ids:
            self.stopped = True
            return
        self.ids.append(token)
        self.stopped = batch.ends_in_stop_string(self.ids)

    def finish(self, limits: GenerationLimits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.text = decode(tokenizer, self.ids)
        for stop in limits.stop_strings:
            self.text = self.text.partition(stop)[0]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode without special tokens, with the tokenizer's own spaces."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    adapter_names: Sequence[str | None],
    limits: GenerationLimits,
) -> dict[str | None, list[Generation]]:
    """Continue every prompt greedily under every model; results are in prompt order.

    Args:
        prompts: token ids, at least one and fewer than ``limits.context``.
        adapter_names: distinct adapters, attached to ``base``; None is the bare base.
    """
    groups = find_shared_prefixes(prompts, base.packs)
    shared = {i: group for group in groups for i in group[1]}
    order = [i for _, members in groups for i in sorted(members, key=lambda i: -len(prompts[i]))]
    most = [min(limits.max_new_tokens, limits.context - len(prompt)) for prompt in prompts]
    by_model = {
        name: [Generation(name, prompt, most[i], shared[i]) for i, prompt in enumerate(prompts)]
        for name in adapter_names
    }
    waiting = deque(by_model[name][i] for name in adapter_names for i in order)
    RunningBatch(base, limits).run(waiting)
    for generations in by_model.values():
        for generation in generations:
            generation.finish(limits, base.tokenizer)
    return by_model


CachePart = tuple[KVCache, Sequence[Generation], Tensor]  # Tensor: last token by row


def likeliest(logits: Tensor, sequences: Sequence[Generation]) -> Tensor:
    """Return the next token of each sequence, (R,), from (R, V) logits."""
    return logits.argmax(dim=-1)


def _most_cached_tokens(model: PreTrainedModel, batch_tokens: int) -> int:
    """Return the tokens that a cache has room for, unless it holds a single sequence."""
    per_token = cached_values_per_token(model.config) * model.dtype.itemsize
    room = max(CACHE_BYTES, nbytes(model)) // per_token
    return min(CACHED_PER_BATCH_TOKEN * batch_tokens, room)


def writing_bytes(
    model: PreTrainedModel, num_rows: int, longest: int, batch_tokens: int, pass_bytes: int
) -> int:
    """Estimate the peak memory of writing ``num_rows`` answers at once, bytes.

    Each has a prompt of at most ``longest`` tokens; a pass takes ``pass_bytes``.
    """
    config = model.config.get_text_config()
    capacity = min(longest, context_length(model.config) or longest) + GROWTH
    rows = min(max(1, _most_cached_tokens(model, batch_tokens) // capacity), num_rows)
    cache = rows * capacity * cached_values_per_token(model.config) * model.dtype.itemsize
    return cache + max(pass_bytes, COPIED_LAYERS * cache // int(config.num_hidden_layers))


class RunningBatch:
    """The running sequences, with their cache and their last tokens.

    Row i of the cache belongs to ``sequences[i]``. A finished sequence keeps its row, unread, until
    the cache is rebuilt. That copies the cache, and costs about as much as a step.
    """

    def __init__(
        self,
        base: Base,
        limits: GenerationLimits,
        choose: Callable[[Tensor, Sequence[Any]], Tensor] = likeliest,
    ) -> None:
        self.base = base
        self.limits = limits
        self.most_tokens = _most_cached_tokens(base.model, limits.batch_tokens)
        self.choose = choose
        self.can_end: dict[int, bool] = {}  # Whether a token can hold the end of a stop string
        self.sequences: list[Generation] = []
        self.cache = KVCache(0, 0)
        self.tokens = torch.zeros(0, dtype=torch.int64)
        """Last token of each sequence, (R,), on the CPU; the cache does not have it yet."""
        self.spans: tuple[AdapterSpan, ...] = ()
        self.last_prefix: tuple[object, KVCache] = (None, KVCache(0, 0))
        """``prefix_key`` of the shared prefix computed last, with its keys and values."""

    def run(self, waiting: deque[Generation]) -> None:
        with self.base.multi_lora.fixed_weights():
            self.write(waiting)

    def write(self, waiting: deque[Generation]) -> None:
        while waiting or self.sequences:
            num_finished = sum(sequence.is_finished for sequence in self.sequences)
            is_sparse = num_finished * SPARE >= len(self.sequences)
            is_sparse |= num_finished > 0 and not self.base.packs  # no cache to copy
            is_full = bool(self.sequences) and int(self.cache.lengths.max()) >= self.cache.capacity
            if waiting and is_sparse:
                self.admit(waiting)
            elif (num_finished and is_sparse) or is_full:
                self.rebuild([(self.cache, self.sequences, self.tokens)])
            if self.sequences:
                self.step()

    def admit(self, waiting: deque[Generation]) -> None:
        """Start waiting sequences while there is room, at least one if nothing runs."""
        running = [s.max_tokens for s in self.sequences if not s.is_finished]
        num_rows, longest = len(running), max(running, default=0)
        admitted: list[Generation] = []
        while waiting:
            longest = max(longest, waiting[0].max_tokens)  # the room of every row
            if num_rows and (num_rows + 1) * (longest + GROWTH) > self.most_tokens:
                break
            admitted.append(waiting.popleft())
            num_rows += 1
        parts: list[CachePart] = [(self.cache, self.sequences, self.tokens)]
        for _, group in itertools.groupby(admitted, lambda sequence: sequence.prefix_key):
            parts += self.prefill(list(group))
        self.rebuild(parts)

    def prefill(self, admitted: Sequence[Generation]) -> Iterator[CachePart]:
        """Compute prompts with one shared prefix, and write the first token of each answer.

        Equal prompts of a model are computed once.
        """
        prefix = self.compute_prefix(admitted[0])
        num_shared = 0 if prefix is None else prefix.capacity
        asked: dict[tuple[object, ...], list[Generation]] = {}
        for sequence in admitted:
            own = () if self.base.packs else (id(sequence),)  # a model's own cache is not copied
            asked.setdefault((sequence.adapter_name, *own, *sequence.prompt), []).append(sequence)
        rows = [
            Row(s.prompt[num_shared:], [len(s.prompt) - num_shared - 1], s.adapter_name, num_shared)
            for s, *_ in asked.values()
        ]
        alike = iter(asked.values())
        for batch in batches_of(rows, self.limits.batch_tokens):
            members = list(itertools.islice(alike, len(batch)))
            sequences = [sequence for of_row in members for sequence in of_row]
            capacity = num_shared + max(len(row.ids) for row in batch)
            if prefix is None:
                cache = KVCache(len(batch), capacity)
            else:
                copies = torch.zeros(len(batch), dtype=torch.int64)
                cache = KVCache.of_rows([(prefix, copies)], capacity)
            row_batch = RowBatch.of(batch, self.base.device)
            logits = self.base.logits(row_batch, cache, store=True, prefix=prefix)
            if len(sequences) > len(batch):
                counts = torch.tensor([len(of_row) for of_row in members])
                copies = torch.arange(len(batch)).repeat_interleave(counts)
                cache = KVCache.of_rows([(cache, copies)], capacity)
                logits = logits[copies.to(logits.device)]
            yield cache, sequences, self.accept_next(logits, sequences)

    def compute_prefix(self, sequence: Generation) -> KVCache | None:
        """Return the keys and values of the prefix that a prompt shares with others, or None."""
        length, _ = sequence.shared
        if not length:
            return None
        if self.last_prefix[0] != sequence.prefix_key:
            row = Row(sequence.prompt[:length], [], sequence.adapter_name)
            cache = KVCache(1, length)
            self.base.logits(RowBatch.of([row], self.base.device), cache, store=True)
            self.last_prefix = (sequence.prefix_key, cache)
        return self.last_prefix[1]

    def accept_next(self, logits: Tensor, sequences: Sequence[Generation]) -> Tensor:
        """Append the chosen token to each sequence; return the tokens, (R,) on the CPU."""
        tokens = self.choose(logits, sequences).cpu()
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            if not sequence.is_finished:
                sequence.accept(token, self)
        return tokens

    def ends_in_stop_string(self, ids: list[int]) -> bool:
        """Whether the last of ``ids`` completes a stop string.

        Most tokens cannot, and decoding one costs as much as decoding the tail, so each is decoded
        once. Decoding may strip white space, and characters beyond ASCII may spread over several
        tokens. Such tokens may always complete a stop string.
        """
        tokenizer, stops = self.base.tokenizer, self.limits.stop_strings
        if not stops:
            return False
        if ids[-1] not in self.can_end:
            text = decode(tokenizer, ids[-1:])
            lasts = [stop[-1] for stop in stops if stop]
            self.can_end[ids[-1]] = any(
                last in text or last.isspace() or not last.isascii() for last in lasts
            )
        if not self.can_end[ids[-1]]:
            return False
        tail = decode(tokenizer, ids[-self.limits.tail :])
        return any(stop in tail for stop in stops)

    def rebuild(self, parts: Sequence[CachePart]) -> None:
        """Make the unfinished sequences of all parts the running ones, with room to grow."""
        kept_rows: list[tuple[KVCache, Tensor]] = []
        sequences: list[Generation] = []
        tokens: list[Tensor] = []
        for cache, members, last in parts:
            kept = torch.tensor([i for i, s in enumerate(members) if not s.is_finished])
            if len(kept):
                kept_rows.append((cache, kept))
                sequences += [members[i] for i in kept.tolist()]
                tokens.append(last[kept])
        self.sequences = sequences
        if not sequences:
            self.cache, self.tokens, self.spans = KVCache(0, 0), self.tokens[:0], ()
            return
        longest = max(int(cache.lengths[kept].max()) for cache, kept in kept_rows)
        self.cache = KVCache.of_rows(kept_rows, longest + GROWTH, empties=True)
        self.tokens = torch.cat(tokens)
        spans, stop = [], 0
        for name, run in itertools.groupby(sequence.adapter_name for sequence in sequences):
            start, stop = stop, stop + len(list(run))
            spans.append(AdapterSpan(name, start, stop))
        self.spans = tuple(spans)

    def step(self) -> None:
        num_rows = len(self.sequences)
        device = self.base.device
        batch = RowBatch(
            input_ids=self.tokens[None].to(device),
            # A finished sequence's row may run past the last position that the model knows.
            position_ids=self.cache.lengths[None].clamp(max=self.limits.context - 1).to(device),
            lengths=(1,) * num_rows,
            segments=self.spans,
            keep=torch.arange(num_rows),
        )
        logits = self.base.logits(batch, self.cache, store=True)
        self.tokens = self.accept_next(logits, self.sequences)
