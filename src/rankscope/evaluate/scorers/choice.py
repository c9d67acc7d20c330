"""Multiple choice by log-probability: log p(option | prompt) of every option, for many models.

An item is one row that branches: its prompt, then its options side by side, each of which sees the
prompt and itself. The logits at the prompt's last token score the first token of every option, so
letters and one-token options need nothing more. What prompts begin with in common (the examples
before every question of a subject) is computed once per model and kept as keys and values, see
``prefixes.py``.

Batches are cut once and every model runs through the same ones, one model per pass. So a model's
scores do not depend on which others are scored with it, an adapter with B = 0 gives the base's
scores bit for bit, and differences between models are never differences between batches. Passes
are filled by items; mixing models in one would not make them fuller, only slice the adapters'
products finer.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankscope.data.encode import Encoder
from rankscope.data.items import LETTERS, Item
from rankscope.data.registry import TaskSpec
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores, choice_predictions, first_best, mean
from rankscope.evaluate.prefix_sharing import SharedPrefix, find_shared_prefixes
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.multi_lora import AdapterSpan
from rankscope.records import ItemResult

MAX_LOGITS = 2**26
"""Most logits of one pass, 256 MB in float32: bounds kept positions under large vocabularies."""

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

    def distinct(self) -> "Question":
        """Every continuation once: equal ones tie, whatever a product's rounding does by place."""
        return Question(self.prompt, list(dict.fromkeys(map(tuple, self.continuations))))


def encode_choices(encoder: Encoder, items: Sequence[Item], spec: TaskSpec) -> list[Question]:
    """Every item with its option texts and its letters, as far as the task scores them.

    Option texts are scored for ``option_text``; letters where the prompt lists the options, since
    otherwise they name nothing.

    Raises:
        UserError: an item without options, or an option without tokens.
    """
    questions = []
    for item in items:
        if len(item.choices) < 2 or item.answer is None:
            raise UserError(
                f"{item.location}: scorer {spec.scorer!r} needs at least two choices and an answer; "
                f"found {len(item.choices)} choices and answer {item.answer}"
            )
        answers = list(item.choices) if scores_text(spec) else []
        if scores_letters(spec):
            if len(item.choices) > len(LETTERS):
                raise UserError(
                    f"{item.location}: {len(item.choices)} choices; letters name {len(LETTERS)}"
                )
            answers += LETTERS[: len(item.choices)]
        question = Question(
            encoder.prompt_ids(item), [encoder.answer_ids(answer, item) for answer in answers]
        )
        empty = [a for a, ids in zip(answers, question.continuations, strict=True) if not ids]
        if empty or not question.prompt:
            what = f"option {empty[0]!r}" if empty else "the prompt"
            raise UserError(f"{item.location}: {what} has no tokens, so it has no probability")
        questions.append(question)
    return questions


def scores_text(spec: TaskSpec) -> bool:
    """Option texts are scored."""
    return spec.scorer == "option_text"


def scores_letters(spec: TaskSpec) -> bool:
    """Letters are scored: they cost nothing where the prompt lists the options."""
    return spec.scorer == "option_letter" or spec.lists_options


# --- passes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions scored in one pass: each a row whose options of two or more tokens are branches.

    A branch feeds all but its last token. The prompt's last logits predict the first token of every
    option, and a branch's predict the rest.
    """

    positions: tuple[int, ...]
    """Which questions, by their place in the caller's order."""
    counts: tuple[int, ...]
    """Continuations of each."""
    batch: RowBatch
    sources: Tensor
    """(C,) which row of the logits predicts each continuation token."""
    targets: Tensor
    """(C,) token ids."""
    owners: npt.NDArray[np.int64]
    """(C,) which continuation of the chunk each token belongs to."""

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        members: Sequence[int],
        num_shared: int,
        device: torch.device,
    ) -> "Chunk":
        """The pass of ``members``, whose first ``num_shared`` tokens are in a cache."""
        rows: list[Row] = []
        sources: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        owner = kept = 0
        for question in (questions[i] for i in members):
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
            positions=tuple(members),
            counts=tuple(len(questions[i].continuations) for i in members),
            batch=RowBatch.of(rows, device),
            sources=torch.tensor(sources, device=device),
            targets=torch.tensor(targets, device=device),
            owners=np.array(owners, dtype=np.int64),
        )

    @property
    def num_tokens(self) -> int:
        """Computed in the pass."""
        return sum(self.batch.lengths)


@dataclass(frozen=True, slots=True)
class Group:
    """Chunks of questions whose prompts begin alike."""

    prefix: RowBatch | None
    """What they begin with, one row; None where each is computed whole."""
    chunks: tuple[Chunk, ...]

    def shared(self, base: Base, adapter_name: str | None) -> KVCache | None:
        """The prefix's keys and values under one model."""
        if self.prefix is None:
            return None
        cache = KVCache(1, self.prefix.lengths[0])
        base.logits(for_adapter(self.prefix, adapter_name), cache, store=True)
        return cache


def make_groups(
    questions: Sequence[Question], batch_tokens: int, vocab_size: int, device: torch.device
) -> Iterator[Group]:
    """Questions by common prefix, in passes of at most ``batch_tokens`` tokens."""
    max_kept = max(1, MAX_LOGITS // vocab_size)
    for shared in find_shared_prefixes([question.prompt for question in questions]):
        length = shared.length
        prefix = None
        if length:
            row = Row(questions[shared.members[0]].prompt[:length], [])
            prefix = RowBatch.of([row], device)
        parts = cut(questions, shared, batch_tokens, max_kept)
        yield Group(prefix, tuple(Chunk.of(questions, part, length, device) for part in parts))


def cut(
    questions: Sequence[Question], shared: SharedPrefix, batch_tokens: int, max_kept: int
) -> Iterator[list[int]]:
    """Members of a group, longest rows first, in parts bounded by tokens and by kept positions."""
    branched = {i: sum(len(ids) - 1 for ids in questions[i].continuations) for i in shared.members}
    lengths = {i: len(questions[i].prompt) - shared.length + branched[i] for i in shared.members}
    part: list[int] = []
    size = kept = 0
    for index in sorted(shared.members, key=lambda i: -lengths[i]):
        full = size + lengths[index] > batch_tokens or kept + 1 + branched[index] > max_kept
        if part and full:
            yield part
            part, size, kept = [], 0, 0
        part.append(index)
        size += lengths[index]
        kept += 1 + branched[index]
    if part:
        yield part


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


def run_chunk(
    base: Base, chunk: Chunk, adapter_name: str | None, shared: KVCache | None, *, greedy: bool
) -> tuple[Floats, Floats | None]:
    """Of every continuation of the chunk: summed log p, and how many tokens are not the likeliest.

    (continuations,) each under one model; the second is None unless ``greedy`` asks for it.
    """
    logits = base.logits(for_adapter(chunk.batch, adapter_name), prefix=shared)
    logprobs = token_logprobs(logits, chunk.sources, chunk.targets)
    count = sum(chunk.counts)
    totals: Floats = np.bincount(chunk.owners, weights=logprobs, minlength=count).astype(float)
    if not greedy:
        return totals, None
    missed = (logits.argmax(-1)[chunk.sources] != chunk.targets).cpu().double().numpy()
    return totals, np.bincount(chunk.owners, weights=missed, minlength=count).astype(float)


@dataclass(slots=True)
class Logprobs:
    """Summed log p of every continuation of every question under one model."""

    values: list[Floats]
    """Per question, (continuations,)."""
    missed: list[Floats]
    """Per question, (continuations,): tokens that greedy decoding would not write; empty arrays
    unless asked for."""
    seconds: float = 0.0
    num_tokens: int = 0

    def put(self, chunk: Chunk, totals: Floats, missed: Floats | None) -> None:
        """Take what a chunk's pass found."""
        bounds = np.cumsum(chunk.counts)[:-1]
        for kept, found in ((self.values, totals), (self.missed, missed)):
            if found is not None:
                for position, part in zip(chunk.positions, np.split(found, bounds), strict=True):
                    kept[position] = part
        self.num_tokens += chunk.num_tokens


def continuation_logprobs(
    base: Base,
    questions: Sequence[Question],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
    *,
    greedy: bool = False,
) -> dict[str | None, Logprobs]:
    """log p(continuation | prompt) in nats, summed over its tokens, under every model.

    Args:
        base: carries the adapters of ``adapter_names``; None among them is the bare base.
        questions: prompts of at least one token, continuations of at least one token each.
        adapter_names: distinct.
        batch_tokens: most tokens of a pass; a longer row, or a longer prefix, runs alone.
        greedy: find ``missed`` too.
    """
    empty = [np.zeros(0)] * len(questions)
    found = {adapter_name: Logprobs(list(empty), list(empty)) for adapter_name in adapter_names}
    distinct = [question.distinct() for question in questions]
    for group in make_groups(distinct, batch_tokens, base.record.vocab_size, base.device):
        for adapter_name, logprobs in found.items():
            begun = time.perf_counter()
            shared = group.shared(base, adapter_name)
            logprobs.num_tokens += 0 if group.prefix is None else group.prefix.lengths[0]
            for chunk in group.chunks:
                logprobs.put(chunk, *run_chunk(base, chunk, adapter_name, shared, greedy=greedy))
            logprobs.seconds += time.perf_counter() - begun
    for logprobs in found.values():
        for kept in (logprobs.values, logprobs.missed) if greedy else (logprobs.values,):
            for index, (question, once) in enumerate(zip(questions, distinct, strict=True)):
                places = {ids: place for place, ids in enumerate(once.continuations)}
                kept[index] = kept[index][[places[tuple(ids)] for ids in question.continuations]]
    return found


# --- scores -------------------------------------------------------------------------------------


def score_choices(
    base: Base,
    items: Sequence[Item],
    questions: Sequence[Question],
    spec: TaskSpec,
    adapter_names: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, ModelScores]:
    """Multiple choice under every model; ``questions`` are the items as encoded for ``spec``.

    Metrics: ``acc``, ``acc_norm``, ``acc_bytes`` and ``acc_token`` where option texts are scored,
    ``letter`` where letters are (see :func:`encode_choices`). The first option wins ties. An item
    whose log p are not finite counts as wrong, and ``not_finite`` then tells the share of such
    items.
    """
    found = continuation_logprobs(base, questions, adapter_names, batch_tokens)
    return {
        adapter_name: summarize(items, questions, spec, logprobs)
        for adapter_name, logprobs in found.items()
    }


def summarize(
    items: Sequence[Item], questions: Sequence[Question], spec: TaskSpec, logprobs: Logprobs
) -> ModelScores:
    """Scores of one model from its log-probabilities."""
    primary_metric = "acc" if scores_text(spec) else "letter"
    hits: dict[str, list[float]] = {}
    results = []
    not_finite = 0
    for item, question, values in zip(items, questions, logprobs.values, strict=True):
        assert item.answer is not None
        is_finite = bool(np.isfinite(values).all())
        not_finite += not is_finite
        count = len(item.choices)
        texts = tuple(values[:count].tolist()) if scores_text(spec) else None
        letters = tuple(values[-count:].tolist()) if scores_letters(spec) else None
        tokens = tuple(len(ids) for ids in question.continuations[:count]) if texts else None
        picks: dict[str, int | None] = {}
        if texts is not None and tokens is not None:
            picks |= choice_predictions(texts, tokens, item.choices)
        if letters is not None:
            picks["letter"] = first_best(letters)
        for name, pick in picks.items():
            hits.setdefault(name, []).append(float(is_finite and pick == item.answer))
        pick = picks[primary_metric]
        scored = texts if texts is not None else letters
        assert scored is not None
        results.append(
            ItemResult(
                item_id=item.item_id,
                subject=item.subject,
                score=hits[primary_metric][-1],
                gold=item.choices[item.answer],
                prediction="" if pick is None else item.choices[pick],
                gold_logprob=scored[item.answer] if is_finite else None,
                option_logprobs=texts,
                option_tokens=tokens,
                letter_logprobs=letters,
            )
        )
    metrics = {name: mean(scores) for name, scores in hits.items()}
    if not_finite:
        metrics["not_finite"] = not_finite / len(items)
    return ModelScores(results, metrics, logprobs.seconds, logprobs.num_tokens)
