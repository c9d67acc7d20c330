"""The batch in which sequences generate: one token each and step, of any number of models.

Finished sequences leave, waiting ones take their room. The cached prefixes stay in a
:class:`KVCache`, whose rows are in the order of the running sequences; sequences of one adapter
stand together. What prompts begin with in common is read once per model, see ``prefixes.py``.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rankscope.evaluate.prefix_sharing import SharedPrefix
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch, batches_of
from rankscope.models.multi_lora import AdapterSpan

CACHED_PER_BATCH_TOKEN = 16
"""Tokens that running sequences may come to hold together, as a multiple of ``batch_tokens``."""
GROWTH = 32
"""Steps of room that the cache gets whenever it is laid out anew."""
SPARE = 8
"""The cache is laid out anew once one in so many of its rows has finished."""


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Where generation ends."""

    max_new_tokens: int
    context: int
    """Most tokens of prompt and answer together."""
    batch_tokens: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()

    @property
    def tail(self) -> int:
        """Last tokens that can hold the end of a stop string: each token is a byte or more."""
        return max((len(text.encode()) for text in self.stop_strings), default=0) + 1


@dataclass(slots=True)
class Generation:
    """One prompt continued by one model."""

    adapter_name: str | None
    position: int
    """Which prompt, by its place in the caller's order."""
    prompt: Sequence[int]
    room: int
    """Most tokens it may generate."""
    shared: SharedPrefix | None = None
    """The prompts that begin as this one does, where that is computed once for all of them."""
    ids: list[int] = field(default_factory=list)
    """Generated tokens, the stop token not among them."""
    stopped: bool = False
    """Ended by a stop token or stop string, not for want of room."""
    text: str = ""

    @property
    def is_finished(self) -> bool:
        """No further token is wanted."""
        return self.stopped or len(self.ids) >= self.room

    def accept(self, token: int, stops: "Stops") -> None:
        """Take the next token."""
        if token in stops.limits.stop_ids:
            self.stopped = True
            return
        self.ids.append(token)
        self.stopped = stops.end(self.ids)

    def finish(self, limits: GenerationLimits, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode, and cut at the first stop string."""
        self.text = decode(tokenizer, self.ids)
        for stop in limits.stop_strings:
            self.text = self.text.partition(stop)[0]


@dataclass(frozen=True, slots=True)
class Stops:
    """Finds stop strings as they are completed."""

    limits: GenerationLimits
    tokenizer: PreTrainedTokenizerBase
    _can_end: dict[int, bool] = field(default_factory=dict)

    def end(self, ids: list[int]) -> bool:
        """The last of ``ids`` completes a stop string."""
        if not self.can_end(ids[-1]):
            return False
        tail = decode(self.tokenizer, ids[-self.limits.tail :])
        return any(text in tail for text in self.limits.stop_strings)

    def can_end(self, token: int) -> bool:
        """The token's text holds the last character of a stop string, or may do so in company.

        Most tokens do not, and decoding one costs as much as it does to decode the tail: each is
        looked at once. White space may be stripped from a token that stands alone, and other
        characters than ASCII's may be spread over several.
        """
        if token not in self._can_end:
            text = decode(self.tokenizer, [token])
            lasts = [stop[-1] for stop in self.limits.stop_strings if stop]
            self._can_end[token] = any(
                last in text or last.isspace() or not last.isascii() for last in lasts
            )
        return self._can_end[token]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text without special tokens, spaces as the tokenizer has them."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class RunningBatch:
    """The sequences that generate now, with their cache and their last tokens.

    Row i of the cache belongs to ``sequences[i]``. A finished sequence keeps its row, unread, until
    the cache is laid out anew: that copies the cache, which costs about as much as a step.
    """

    def __init__(self, base: Base, limits: GenerationLimits) -> None:
        self.base = base
        self.limits = limits
        self.stops = Stops(limits, base.tokenizer)
        self.sequences: list[Generation] = []
        self.cache = KVCache(0, 0)
        self.tokens = torch.zeros(0, dtype=torch.int64)
        """(R,) last token of each sequence, on the CPU; not in the cache yet."""
        self.segments: tuple[AdapterSpan, ...] = ()
        self.begun: tuple[object, KVCache] = (None, KVCache(0, 0))
        """The shared prefix computed last: whose it is, and its keys and values."""

    @property
    def held(self) -> int:
        """Tokens that the unfinished sequences may come to hold."""
        return sum(len(s.prompt) + s.room for s in self.sequences if not s.is_finished)

    @property
    def num_finished(self) -> int:
        """Sequences that only wait to be dropped."""
        return sum(sequence.is_finished for sequence in self.sequences)

    def admit(self, waiting: deque[Generation]) -> None:
        """Let waiting sequences in while there is room (one at least if nothing runs)."""
        held = self.held
        admitted: list[Generation] = []
        while waiting:
            need = len(waiting[0].prompt) + waiting[0].room
            if held and held + need > CACHED_PER_BATCH_TOKEN * self.limits.batch_tokens:
                break
            admitted.append(waiting.popleft())
            held += need
        parts: list[tuple[KVCache, Sequence[Generation], Tensor]]
        parts = [(self.cache, self.sequences, self.tokens)]
        for _, alike in itertools.groupby(admitted, beginning):
            parts += self.read_prompts(list(alike))
        self.lay_out(parts)

    def read_prompts(
        self, admitted: Sequence[Generation]
    ) -> Iterator[tuple[KVCache, Sequence[Generation], Tensor]]:
        """Caches of prompts that begin alike, with the first token after each."""
        prefix = self.shared_prefix(admitted[0])
        num_shared = 0 if prefix is None else prefix.capacity
        rows = [
            Row(s.prompt[num_shared:], [len(s.prompt) - num_shared - 1], s.adapter_name, num_shared)
            for s in admitted
        ]
        start = 0
        for batch in batches_of(rows, self.limits.batch_tokens):
            members = admitted[start : start + len(batch)]
            start += len(batch)
            capacity = num_shared + max(len(row.ids) for row in batch)
            if prefix is None:
                cache = KVCache(len(batch), capacity)
            else:
                cache = prefix.select(torch.zeros(len(batch), dtype=torch.int64), capacity)
            rows_of_pass = RowBatch.of(batch, self.base.device)
            logits = self.base.logits(rows_of_pass, cache, store=True, prefix=prefix)
            yield cache, members, self.take(logits, members)

    def shared_prefix(self, sequence: Generation) -> KVCache | None:
        """The keys and values of what its prompt shares with others; None where it shares none."""
        if sequence.shared is None:
            return None
        if self.begun[0] != beginning(sequence):
            length = sequence.shared.length
            row = Row(sequence.prompt[:length], [], sequence.adapter_name)
            cache = KVCache(1, length)
            self.base.logits(RowBatch.of([row], self.base.device), cache, store=True)
            self.begun = (beginning(sequence), cache)
        return self.begun[1]

    def take(self, logits: Tensor, sequences: Sequence[Generation]) -> Tensor:
        """Give each sequence the likeliest token of its logits row; the tokens, (R,) on the CPU."""
        tokens = logits.argmax(dim=-1).cpu()
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            if not sequence.is_finished:
                sequence.accept(token, self.stops)
        return tokens

    def lay_out(self, parts: Sequence[tuple[KVCache, Sequence[Generation], Tensor]]) -> None:
        """Make the unfinished sequences of all parts the running ones, with room to grow."""
        chosen: list[tuple[KVCache, Tensor]] = []
        sequences: list[Generation] = []
        tokens: list[Tensor] = []
        for cache, members, last in parts:
            kept = torch.tensor([i for i, s in enumerate(members) if not s.is_finished])
            if len(kept):
                chosen.append((cache, kept))
                sequences += [members[i] for i in kept.tolist()]
                tokens.append(last[kept])
        self.sequences = sequences
        if not sequences:
            self.cache, self.tokens, self.segments = KVCache(0, 0), self.tokens[:0], ()
            return
        longest = max(int(cache.lengths[kept].max()) for cache, kept in chosen)
        self.cache = joined(chosen, longest + GROWTH)
        self.tokens = torch.cat(tokens)
        self.segments = segments_of([sequence.adapter_name for sequence in sequences])

    def step(self) -> None:
        """One more token for every running sequence."""
        num_rows = len(self.sequences)
        device = self.base.device
        batch = RowBatch(
            input_ids=self.tokens[None].to(device),
            # A finished sequence's row may run past the last position that the model knows.
            position_ids=self.cache.lengths[None].clamp(max=self.limits.context - 1).to(device),
            lengths=(1,) * num_rows,
            segments=self.segments,
            keep=torch.arange(num_rows, device=device),
        )
        logits = self.base.logits(batch, self.cache, store=True)
        self.tokens = self.take(logits, self.sequences)

    def run(self, waiting: deque[Generation]) -> None:
        """Generate until nothing waits or runs."""
        while waiting or self.sequences:
            finished = self.num_finished
            is_sparse = finished * SPARE >= len(self.sequences)
            if waiting and is_sparse:
                self.admit(waiting)
            elif (finished and is_sparse) or int(self.cache.lengths.max()) >= self.cache.capacity:
                self.lay_out([(self.cache, self.sequences, self.tokens)])
            if self.sequences:
                self.step()


def joined(parts: Sequence[tuple[KVCache, Tensor]], capacity: int) -> KVCache:
    """One cache holding the given rows of several, in order, with room for ``capacity`` tokens."""
    selected = [cache.select(rows, capacity) for cache, rows in parts]
    if len(selected) == 1:
        return selected[0]
    whole = KVCache(0, capacity)
    whole.lengths = torch.cat([cache.lengths for cache in selected])
    for layer in selected[0].keys:
        whole.keys[layer] = torch.cat([cache.keys[layer] for cache in selected])
        whole.values[layer] = torch.cat([cache.values[layer] for cache in selected])
    return whole


def beginning(sequence: Generation) -> object:
    """What sequences have in common whose prompts are read together; None: they share nothing."""
    return None if sequence.shared is None else (sequence.adapter_name, sequence.shared.members)


def segments_of(adapter_names: Sequence[str | None]) -> tuple[AdapterSpan, ...]:
    """Segments of rows of one token each."""
    segments: list[AdapterSpan] = []
    for index, adapter_name in enumerate(adapter_names):
        if segments and segments[-1].adapter_name == adapter_name:
            segments[-1] = segments[-1]._replace(stop=index + 1)
        else:
            segments.append(AdapterSpan(adapter_name, index, index + 1))
    return tuple(segments)
