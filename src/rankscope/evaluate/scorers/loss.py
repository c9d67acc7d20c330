"""Held-out likelihood: mean log p per labelled token of an item's own training row.

The score of conversations and plain text, which have no answer to be right or wrong about. As in
:mod:`.choice`, every model runs through the same batches, one model per pass.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.items import Item
from rankscope.errors import IntegrityError, UserError
from rankscope.evaluate.metrics import ModelScores, mean
from rankscope.evaluate.scorers.choice import MAX_LOGITS, Floats, for_adapter, token_logprobs
from rankscope.models.base import Base, Row, RowBatch
from rankscope.records import ItemResult


def encode_losses(encoder: Encoder, items: Sequence[Item]) -> list[EncodedRow]:
    """Every item as a training row with completion labels.

    Raises:
        UserError: items with no token to score: no completion, or a prompt that fills the encoder's
            ``max_length``.
    """
    rows = [encoder.training_row(item, "completion") for item in items]
    empty = [item.location for item, row in zip(items, rows, strict=True) if row is None]
    if empty:
        bound = encoder.max_length
        fills = f", or a prompt that fills max_length = {bound} tokens" if bound else ""
        raise UserError(
            f"{empty[0]}: no token to score is left; so are {len(empty)} of {len(items)} items: no "
            f"completion{fills}. Leave these rows out or, in a study, raise train.max_length"
        )
    return [row for row in rows if row is not None]


def score_losses(
    base: Base,
    items: Sequence[Item],
    rows: Sequence[EncodedRow],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, ModelScores]:
    """Log p per labelled token under every model, nats.

    Metrics: ``logprob_per_token``, the mean over items of each item's mean, and
    ``logprob_per_token_pooled``, the mean over all labelled tokens.

    Raises:
        IntegrityError: a model whose log-probabilities are not finite.
    """
    num_tokens = sum(len(row.input_ids) for row in rows)
    return {
        adapter_name: summarize(items, rows, total, adapter_name, seconds, num_tokens)
        for adapter_name, (total, seconds) in row_totals(
            base, rows, adapter_names, batch_tokens
        ).items()
    }


def row_totals(
    base: Base, rows: Sequence[EncodedRow], adapter_names: Sequence[str | None], batch_tokens: int
) -> dict[str | None, tuple[Floats, float]]:
    """Summed log p of every row's labelled tokens, (rows,), under every model, and its seconds."""
    totals: dict[str | None, Floats] = {
        adapter_name: np.zeros(len(rows)) for adapter_name in adapter_names
    }
    seconds = dict.fromkeys(adapter_names, 0.0)
    for members in cut(rows, batch_tokens, max(1, MAX_LOGITS // base.record.vocab_size)):
        kept_rows = [
            Row(row.input_ids, [t - 1 for t, kept in enumerate(row.is_label) if kept])
            for row in (rows[i] for i in members)
        ]
        batch = RowBatch.of(kept_rows, base.device)
        targets = torch.tensor(
            [row.ids[t + 1] for row in kept_rows for t in row.keep], device=base.device
        )
        owners = np.repeat(members, [len(row.keep) for row in kept_rows])
        for adapter_name, total in totals.items():
            begun = time.perf_counter()
            logprobs = token_logprobs(base.logits(for_adapter(batch, adapter_name)), None, targets)
            total += np.bincount(owners, weights=logprobs, minlength=len(rows))
            seconds[adapter_name] += time.perf_counter() - begun
    return {adapter_name: (total, seconds[adapter_name]) for adapter_name, total in totals.items()}


def cut(rows: Sequence[EncodedRow], batch_tokens: int, max_kept: int) -> Iterator[list[int]]:
    """Indices of rows, longest first, in batches bounded by tokens and by labelled tokens."""
    members: list[int] = []
    size = kept = 0
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids)):
        length, labelled = len(rows[index].input_ids), sum(rows[index].is_label)
        if members and (size + length > batch_tokens or kept + labelled > max_kept):
            yield members
            members, size, kept = [], 0, 0
        members.append(index)
        size += length
        kept += labelled
    if members:
        yield members


def summarize(
    items: Sequence[Item],
    rows: Sequence[EncodedRow],
    totals: Floats,
    adapter_name: str | None,
    seconds: float,
    num_tokens: int,
) -> ModelScores:
    """Scores of one model from its items' summed log-probabilities."""
    check_not_finite(items, totals, adapter_name)
    counts = [sum(row.is_label) for row in rows]
    results = [
        ItemResult(
            item_id=item.item_id,
            subject=item.subject,
            score=total / count,
            gold=item.completion,
            prediction="",
            gold_logprob=total,
        )
        for item, total, count in zip(items, totals.tolist(), counts, strict=True)
    ]
    metrics = {
        "logprob_per_token": mean([result.score for result in results]),
        "logprob_per_token_pooled": float(totals.sum()) / sum(counts),
    }
    return ModelScores(results, metrics, seconds, num_tokens)


def check_not_finite(items: Sequence[Item], totals: Floats, adapter_name: str | None) -> None:
    """Raise IntegrityError for a model whose log-probabilities, (items,), are not finite."""
    if not np.isfinite(totals).all():
        bad = int(np.flatnonzero(~np.isfinite(totals))[0])
        model = "the base" if adapter_name is None else f"adapter {adapter_name}"
        raise IntegrityError(
            f"{model}: log-probabilities of {items[bad].item_id} are not finite; its weights have "
            "blown up, so it cannot be scored"
        )
