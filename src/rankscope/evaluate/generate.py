"""Greedy generation for many items and many models in one running batch.

Sequences of all models wait in one queue. As many as the cache may hold run together, one token
per sequence and step; finished ones leave, waiting ones take their room. The cached prefixes stay
in a :class:`RowCache`, whose rows are in the order of the running sequences; sequences of one
adapter stand together.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rankscope.config.schema import Scorer
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.numbers import ANSWER_MARK, extract_number
from rankscope.data.tasks import TaskSpec
from rankscope.errors import BadInput
from rankscope.evaluate.scorers import ModelScores, mean, normalized_answer
from rankscope.models.base import Base, Row, RowBatch, batches_of
from rankscope.models.packed import Segment
from rankscope.models.row_attention import RowCache
from rankscope.records import ItemResult

CACHED_PER_BATCH_TOKEN = 16
"""Tokens that running sequences may come to hold together, as a multiple of ``batch_tokens``."""
GROWTH = 32
"""Steps of room that the cache gets whenever it is laid out anew."""
SPARE = 8
"""The cache is laid out anew once one in so many of its rows has finished."""


@dataclass(frozen=True, slots=True)
class Limits:
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

    slot: str | None
    position: int
    """Which prompt, by its place in the caller's order."""
    prompt: Sequence[int]
    room: int
    """Most tokens it may generate."""
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

    def finish(self, limits: Limits, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode, and cut at the first stop string."""
        self.text = decode(tokenizer, self.ids)
        for stop in limits.stop_strings:
            self.text = self.text.partition(stop)[0]


@dataclass(frozen=True, slots=True)
class Stops:
    """Finds stop strings as they are completed."""

    limits: Limits
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

    def __init__(self, base: Base, limits: Limits) -> None:
        self.base = base
        self.limits = limits
        self.stops = Stops(limits, base.tokenizer)
        self.sequences: list[Generation] = []
        self.cache = RowCache(0, 0)
        self.tokens = torch.zeros(0, dtype=torch.int64)
        """(R,) last token of each sequence, on the CPU; not in the cache yet."""
        self.segments: tuple[Segment, ...] = ()

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
        parts = [(self.cache, self.sequences, self.tokens)]
        rows = [Row(s.prompt, [len(s.prompt) - 1], s.slot) for s in admitted]
        start = 0
        for batch in batches_of(rows, self.limits.batch_tokens):
            members = admitted[start : start + len(batch)]
            start += len(batch)
            cache = RowCache(len(batch), max(len(row.ids) for row in batch))
            logits = self.base.logits(RowBatch.of(batch, self.base.device), cache, store=True)
            parts.append((cache, members, self.take(logits, members)))
        self.lay_out(parts)

    def take(self, logits: Tensor, sequences: Sequence[Generation]) -> Tensor:
        """Give each sequence the likeliest token of its logits row; the tokens, (R,) on the CPU."""
        tokens = logits.argmax(dim=-1).cpu()
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            if not sequence.is_finished:
                sequence.accept(token, self.stops)
        return tokens

    def lay_out(self, parts: Sequence[tuple[RowCache, Sequence[Generation], Tensor]]) -> None:
        """Make the unfinished sequences of all parts the running ones, with room to grow."""
        chosen: list[tuple[RowCache, Tensor]] = []
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
            self.cache, self.tokens, self.segments = RowCache(0, 0), self.tokens[:0], ()
            return
        longest = max(int(cache.lengths[kept].max()) for cache, kept in chosen)
        self.cache = joined(chosen, longest + GROWTH)
        self.tokens = torch.cat(tokens)
        self.segments = segments_of([sequence.slot for sequence in sequences])

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


def joined(parts: Sequence[tuple[RowCache, Tensor]], capacity: int) -> RowCache:
    """One cache holding the given rows of several, in order, with room for ``capacity`` tokens."""
    selected = [cache.select(rows, capacity) for cache, rows in parts]
    if len(selected) == 1:
        return selected[0]
    whole = RowCache(0, capacity)
    whole.lengths = torch.cat([cache.lengths for cache in selected])
    for layer in selected[0].keys:
        whole.keys[layer] = torch.cat([cache.keys[layer] for cache in selected])
        whole.values[layer] = torch.cat([cache.values[layer] for cache in selected])
    return whole


def segments_of(slots: Sequence[str | None]) -> tuple[Segment, ...]:
    """Segments of rows of one token each."""
    segments: list[Segment] = []
    for index, slot in enumerate(slots):
        if segments and segments[-1].slot == slot:
            segments[-1] = segments[-1]._replace(stop=index + 1)
        else:
            segments.append(Segment(slot, index, index + 1))
    return tuple(segments)


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[str | None],
    limits: Limits,
) -> dict[str | None, list[Generation]]:
    """Continue every prompt greedily under every model; results in prompt order.

    Args:
        base: carries the adapters of ``slots``; None among them is the bare base.
        prompts: token ids, each at least one and fewer than ``limits.context``.
        slots: distinct.

    Raises:
        ValueError: a prompt outside these bounds.
    """
    found: dict[str | None, list[Generation]] = {}
    waiting: deque[Generation] = deque()
    for prompt in prompts:
        if not 0 < len(prompt) < limits.context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens; expected 1 to {limits.context - 1}"
            )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for slot in slots:
        found[slot] = [
            Generation(slot, i, prompt, min(limits.max_new_tokens, limits.context - len(prompt)))
            for i, prompt in enumerate(prompts)
        ]
        waiting.extend(found[slot][i] for i in order)
    RunningBatch(base, limits).run(waiting)
    for generations in found.values():
        for generation in generations:
            generation.finish(limits, base.tokenizer)
    return found


# --- scores -------------------------------------------------------------------------------------


def encode_prompts(encoder: Encoder, items: Sequence[Item]) -> list[list[int]]:
    """Every item's prompt.

    Raises:
        BadInput: an item without a prompt or without a gold answer.
    """
    prompts = []
    for item in items:
        prompts.append(encoder.prompt_ids(item))
        if not prompts[-1] or not gold_answer(item).strip():
            missing = "gold answer" if prompts[-1] else "prompt"
            raise BadInput(
                f"{item.item_id}: no {missing}, so no answer can be generated and judged"
            )
    return prompts


def gold_answer(item: Item) -> str:
    """What a generated answer is compared with."""
    return item.reference or item.completion


def stop_strings(encoder: Encoder, spec: TaskSpec, items: Sequence[Item] = ()) -> tuple[str, ...]:
    """Text at which a plain-format answer is over: the beginning of a next question.

    A model that was not tuned to stop goes on with ``\\nQuestion: ...`` or, in a conversation, with
    ``\\n\\nUser: ...``. Chat models end their turn with a token instead. A template whose questions
    begin with nothing to tell them by gives none.
    """
    if encoder.prompt_format != "plain":
        return ()
    if any(item.messages for item in items):
        return ("\n\nUser:",)
    openings = [opening_of(line) for line in question_lines(spec.prompt)]
    return tuple(f"\n{opening}" for opening in openings if opening)[:1]


def question_lines(template: str) -> list[str]:
    """The lines of a template that hold fields, that of the question first."""
    lines = [line for line in template.splitlines() if "{" in line]
    return sorted(lines, key=lambda line: "{question}" not in line)


def opening_of(line: str) -> str:
    """The literal text that a template's line begins with, where answers do not begin so too.

    It ends in a colon or has three letters, and is no part of the mark before a final number:
    ``#`` would cut ``#### 18`` away.
    """
    opening = line.partition("{")[0].strip()
    letters = sum(character.isalpha() for character in opening)
    if opening.startswith(ANSWER_MARK) or not (opening.endswith(":") or letters >= 3):
        return ""
    return opening


def score_generations(
    base: Base,
    items: Sequence[Item],
    prompts: Sequence[Sequence[int]],
    scorer: Scorer,
    slots: Sequence[str | None],
    limits: Limits,
) -> dict[str | None, ModelScores]:
    """Generated answers judged under every model.

    Metrics: ``exact_match`` (equal numbers for scorer ``number``, equal texts after normalization
    for ``exact_match``), ``stopped`` (share that ended by themselves) and, for ``number``,
    ``answered`` (share with a number in it). A model's seconds are its share, by tokens, of the
    running batch.
    """
    begun = time.perf_counter()
    found = generate(base, prompts, slots, limits)
    seconds = time.perf_counter() - begun
    tokens = {slot: sum(len(g.prompt) + len(g.ids) for g in gs) for slot, gs in found.items()}
    total = sum(tokens.values())
    return {
        slot: summarize(items, gs, scorer, seconds * tokens[slot] / total, tokens[slot])
        for slot, gs in found.items()
    }


def summarize(
    items: Sequence[Item],
    generations: Sequence[Generation],
    scorer: Scorer,
    seconds: float,
    num_tokens: int,
) -> ModelScores:
    """Scores of one model from its answers."""
    results = []
    for item, generation in zip(items, generations, strict=True):
        if scorer == "number":
            gold, prediction = extract_number(gold_answer(item)), extract_number(generation.text)
        else:
            gold = normalized_answer(gold_answer(item))
            prediction = normalized_answer(generation.text)
        if gold is None:
            raise BadInput(
                f"{item.item_id}: no number in the gold answer {gold_answer(item)[:60]!r}; "
                "expected one, such as '#### 18'"
            )
        results.append(
            ItemResult(
                item_id=item.item_id,
                subject=item.subject,
                score=float(prediction == gold),
                gold=gold,
                prediction=prediction or "",
                generated=generation.text,
            )
        )
    metrics = {
        "exact_match": mean([result.score for result in results]),
        "stopped": mean([float(generation.stopped) for generation in generations]),
    }
    if scorer == "number":
        metrics["answered"] = mean([float(result.prediction != "") for result in results])
    return ModelScores(results, metrics, seconds, num_tokens)
