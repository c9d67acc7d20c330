"""Multiple choice by log-probability: log p(option | prompt) of every option, for many models.

The prompt of an item is computed once per model. The logits at its last token already score the
first token of every option, so letters and one-token options need nothing more; longer options
continue the prompt's cached keys and values.

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
from rankscope.data.tasks import TaskSpec
from rankscope.errors import BadInput
from rankscope.evaluate.scorers import ModelScores, choice_predictions, first_best, mean
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.packed import Segment
from rankscope.models.row_attention import RowCache
from rankscope.records import ItemResult

MAX_LOGITS = 2**26
"""Most logits of one pass, 256 MB in float32: bounds kept positions under large vocabularies."""
CACHED_PER_BATCH_TOKEN = 4
"""Most cached tokens of one pass over options, as a multiple of ``batch_tokens``."""

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


def encode_choices(encoder: Encoder, items: Sequence[Item], spec: TaskSpec) -> list[Question]:
    """Every item with its option texts and its letters, as far as the task scores them.

    Option texts are scored for ``option_text``; letters where the prompt lists the options, since
    otherwise they name nothing.

    Raises:
        BadInput: an item without options, or an option without tokens.
    """
    questions = []
    for item in items:
        if len(item.choices) < 2 or item.answer is None:
            raise BadInput(
                f"{item.item_id}: scorer {spec.scorer!r} needs at least two choices and an answer; "
                f"found {len(item.choices)} choices and answer {item.answer}"
            )
        answers = list(item.choices) if scores_text(spec) else []
        if scores_letters(spec):
            if len(item.choices) > len(LETTERS):
                raise BadInput(
                    f"{item.item_id}: {len(item.choices)} choices; letters name {len(LETTERS)}"
                )
            answers += LETTERS[: len(item.choices)]
        question = Question(
            encoder.prompt_ids(item), [encoder.answer_ids(answer, item) for answer in answers]
        )
        empty = [a for a, ids in zip(answers, question.continuations, strict=True) if not ids]
        if empty or not question.prompt:
            what = f"option {empty[0]!r}" if empty else "the prompt"
            raise BadInput(f"{item.item_id}: {what} has no tokens, so it has no probability")
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
class OptionPass:
    """One pass over options of two or more tokens, continuing cached prompts.

    A row feeds all but its last token; its M kept logits predict all but its first.
    """

    batch: RowBatch
    prompts: Tensor
    """(R,) which prompt of the chunk each row continues."""
    targets: Tensor
    """(M,) token ids."""
    owners: npt.NDArray[np.int64]
    """(M,) which continuation of the chunk each target belongs to."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Questions scored together: one pass over prompts, then passes over longer options."""

    positions: tuple[int, ...]
    """Which questions, by their place in the caller's order."""
    counts: tuple[int, ...]
    """Continuations of each."""
    prompts: RowBatch
    first_rows: Tensor
    first_tokens: Tensor
    """(C,) each: the prompt row and the first token of every continuation."""
    options: tuple[OptionPass, ...]

    @property
    def num_tokens(self) -> int:
        """Valid tokens over all passes."""
        return sum(sum(b.lengths) for b in (self.prompts, *(o.batch for o in self.options)))


def make_chunks(
    questions: Sequence[Question], batch_tokens: int, vocab_size: int, device: torch.device
) -> Iterator[Chunk]:
    """Cut questions, longest prompts first, into chunks of at most ``batch_tokens`` tokens."""
    max_kept = max(1, MAX_LOGITS // vocab_size)
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].prompt))
    members: list[int] = []
    size = 0
    for index in order:
        length = len(questions[index].prompt)
        if members and (size + length > batch_tokens or len(members) == max_kept):
            yield make_chunk(questions, members, batch_tokens, max_kept, device)
            members, size = [], 0
        members.append(index)
        size += length
    if members:
        yield make_chunk(questions, members, batch_tokens, max_kept, device)


def make_chunk(
    questions: Sequence[Question],
    members: Sequence[int],
    batch_tokens: int,
    max_kept: int,
    device: torch.device,
) -> Chunk:
    """The passes of one chunk, ready for any model."""
    chosen = [questions[i] for i in members]
    flat = [(row, ids) for row, q in enumerate(chosen) for ids in q.continuations]
    longer = [(c, row, ids) for c, (row, ids) in enumerate(flat) if len(ids) > 1]
    passes: list[OptionPass] = []
    part: list[tuple[int, int, Sequence[int]]] = []
    cached = kept = 0
    for entry in longer:
        _, row, ids = entry
        more_cached = len(chosen[row].prompt) + len(ids) - 1
        full = cached + more_cached > CACHED_PER_BATCH_TOKEN * batch_tokens
        if part and (full or kept + len(ids) - 1 > min(max_kept, batch_tokens)):
            passes.append(option_pass(part, chosen, device))
            part, cached, kept = [], 0, 0
        part.append(entry)
        cached += more_cached
        kept += len(ids) - 1
    if part:
        passes.append(option_pass(part, chosen, device))
    return Chunk(
        positions=tuple(members),
        counts=tuple(len(q.continuations) for q in chosen),
        prompts=RowBatch.of([Row(q.prompt, [len(q.prompt) - 1]) for q in chosen], device),
        first_rows=torch.tensor([row for row, _ in flat], device=device),
        first_tokens=torch.tensor([ids[0] for _, ids in flat], device=device),
        options=tuple(passes),
    )


def option_pass(
    part: Sequence[tuple[int, int, Sequence[int]]],
    chosen: Sequence[Question],
    device: torch.device,
) -> OptionPass:
    """One pass over (continuation, prompt row, ids) of one chunk."""
    rows = [
        Row(ids[:-1], range(len(ids) - 1), start=len(chosen[row].prompt)) for _, row, ids in part
    ]
    return OptionPass(
        batch=RowBatch.of(rows, device),
        prompts=torch.tensor([row for _, row, _ in part]),
        targets=torch.tensor([t for _, _, ids in part for t in ids[1:]], device=device),
        owners=np.repeat([c for c, _, _ in part], [len(ids) - 1 for _, _, ids in part]),
    )


def of_slot(batch: RowBatch, slot: str | None) -> RowBatch:
    """The same batch with every token belonging to one adapter, or to the bare base."""
    return replace(batch, segments=(Segment(slot, 0, batch.input_ids.shape[1]),))


def token_logprobs(logits: Tensor, rows: Tensor | None, tokens: Tensor) -> Floats:
    """log p of ``tokens`` (C,) under ``logits[rows]``, by a float32 log-softmax, as float64.

    ``rows`` None pairs token i with logits row i.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    if rows is None:
        rows = torch.arange(len(tokens), device=tokens.device)
    return logprobs[rows, tokens].double().cpu().numpy()


def run_chunk(base: Base, chunk: Chunk, slot: str | None) -> Floats:
    """Summed log p of every continuation of the chunk under one model, (C,)."""
    cache = None
    if chunk.options:
        cache = RowCache(len(chunk.prompts.lengths), max(chunk.prompts.lengths))
    logits = base.logits(of_slot(chunk.prompts, slot), cache, store=cache is not None)
    total = token_logprobs(logits, chunk.first_rows, chunk.first_tokens)
    for option in chunk.options:
        assert cache is not None
        width = int(cache.lengths[option.prompts].max())
        prefix = cache.select(option.prompts, width)
        logits = base.logits(of_slot(option.batch, slot), prefix)
        logprobs = token_logprobs(logits, None, option.targets)
        total += np.bincount(option.owners, weights=logprobs, minlength=len(total))
    return total


@dataclass(slots=True)
class Logprobs:
    """Summed log p of every continuation of every question under one model."""

    values: list[Floats]
    """Per question, (continuations,)."""
    seconds: float = 0.0
    num_tokens: int = 0


def continuation_logprobs(
    base: Base, questions: Sequence[Question], slots: Sequence[str | None], batch_tokens: int
) -> dict[str | None, Logprobs]:
    """log p(continuation | prompt) in nats, summed over its tokens, under every model.

    Args:
        base: carries the adapters of ``slots``; None among them is the bare base.
        questions: prompts of at least one token, continuations of at least one token each.
        slots: distinct.
        batch_tokens: most tokens of a pass; a longer prompt runs alone.
    """
    found = {slot: Logprobs([np.zeros(0)] * len(questions)) for slot in slots}
    for chunk in make_chunks(questions, batch_tokens, base.record.vocab_size, base.device):
        bounds = np.cumsum(chunk.counts)[:-1]
        for slot, logprobs in found.items():
            begun = time.perf_counter()
            parts = np.split(run_chunk(base, chunk, slot), bounds)
            for position, part in zip(chunk.positions, parts, strict=True):
                logprobs.values[position] = part
            logprobs.seconds += time.perf_counter() - begun
            logprobs.num_tokens += chunk.num_tokens
    return found


# --- scores -------------------------------------------------------------------------------------


def score_choices(
    base: Base,
    items: Sequence[Item],
    questions: Sequence[Question],
    spec: TaskSpec,
    slots: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, ModelScores]:
    """Multiple choice under every model; ``questions`` are the items as encoded for ``spec``.

    Metrics: ``acc``, ``acc_norm`` and ``acc_token`` where option texts are scored, ``letter`` where
    letters are (see :func:`encode_choices`). The first option wins ties. An item whose log p are
    not finite counts as wrong, and ``not_finite`` then tells the share of such items.
    """
    found = continuation_logprobs(base, questions, slots, batch_tokens)
    return {slot: summarize(items, questions, spec, logprobs) for slot, logprobs in found.items()}


def summarize(
    items: Sequence[Item], questions: Sequence[Question], spec: TaskSpec, logprobs: Logprobs
) -> ModelScores:
    """Scores of one model from its log-probabilities."""
    headline = "acc" if scores_text(spec) else "letter"
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
        pick = picks[headline]
        scored = texts if texts is not None else letters
        assert scored is not None
        results.append(
            ItemResult(
                item_id=item.item_id,
                subject=item.subject,
                score=hits[headline][-1],
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
