"""Perplexity of texts: cross-entropy of every token, however long the text.

A text longer than a window is cut into windows that follow each other. Every token is scored once;
the first of a later window sees the last token of the window before it and no more (strided
evaluation without overlap). The first token of all is scored after the tokenizer's begin token, or
its end token where it has none: what lm-evaluation-harness's rolling log-likelihood does.
"""

import math
from collections.abc import Sequence

import numpy as np

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores, mean
from rankscope.evaluate.scorers.choice import Floats
from rankscope.evaluate.scorers.loss import check_not_finite, row_totals
from rankscope.models.base import Base
from rankscope.records import ItemResult

WINDOW = 1024
"""Most tokens of a window where the encoder's rows have no bound."""


def encode_texts(
    encoder: Encoder, items: Sequence[Item], context: int | None
) -> list[list[EncodedRow]]:
    """The windows of every text.

    Args:
        encoder: see :func:`longest_window`.
        items: texts, without a prompt.
        context: most tokens the model takes in; None is no bound.

    Raises:
        UserError: an item with a prompt, or a text without tokens.
    """
    width = min(longest_window(encoder), context or longest_window(encoder))
    found = []
    for item in items:
        if item.prompt or item.messages:
            raise UserError(
                f"{item.location}: scorer 'perplexity' scores whole texts; expected rows with a "
                "field 'text' alone (scorer 'loss' scores answers after their prompts)"
            )
        ids = [encoder.start_id, *encoder.text_ids(item.completion)]
        if len(ids) < 2:
            raise UserError(f"{item.location}: the text has no tokens")
        found.append(
            [window(ids[start : start + width]) for start in range(0, len(ids) - 1, width - 1)]
        )
    return found


def longest_window(encoder: Encoder) -> int:
    """Most tokens of a window, whatever the model's context; scores depend on it."""
    return encoder.max_length or WINDOW


def window(ids: Sequence[int]) -> EncodedRow:
    """Tokens of which all but the first are scored."""
    return EncodedRow(tuple(ids), (False, *(True for _ in ids[1:])), truncated=False)


def score_texts(
    base: Base,
    items: Sequence[Item],
    windows: Sequence[Sequence[EncodedRow]],
    adapter_names: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, ModelScores]:
    """Cross-entropy of every text under every model.

    Metrics, in nats but for ``bits_per_byte`` and ``perplexity``: ``logprob_per_token``, the mean
    over texts of each text's mean, which is the primary_metric; over all tokens of all texts,
    ``logprob_per_token_pooled``, ``logprob_per_byte_pooled`` (UTF-8 bytes), ``bits_per_byte`` and
    ``perplexity`` = exp(-``logprob_per_token_pooled``).

    Raises:
        IntegrityError: a model whose log-probabilities are not finite.
    """
    rows = [row for one in windows for row in one]
    owners = np.repeat(np.arange(len(windows)), [len(one) for one in windows])
    counts = [sum(sum(row.is_label) for row in one) for one in windows]
    num_bytes = sum(len(item.completion.encode()) for item in items)
    num_tokens = sum(len(row.input_ids) for row in rows)
    scores = {}
    for adapter_name, (of_rows, seconds) in row_totals(
        base, rows, adapter_names, batch_tokens
    ).items():
        totals: Floats = np.bincount(owners, weights=of_rows, minlength=len(windows)).astype(float)
        check_not_finite(items, totals, adapter_name)
        results = [
            ItemResult(
                item_id=item.item_id,
                subject=item.subject,
                score=total / count,
                gold="",
                prediction="",
                gold_logprob=total,
            )
            for item, total, count in zip(items, totals.tolist(), counts, strict=True)
        ]
        whole = math.fsum(totals)
        per_token = whole / sum(counts)
        metrics = {
            "logprob_per_token": mean([result.score for result in results]),
            "logprob_per_token_pooled": per_token,
            "logprob_per_byte_pooled": whole / num_bytes,
            "bits_per_byte": -whole / num_bytes / math.log(2),
            "perplexity": math.exp(min(-per_token, 700.0)),
        }
        scores[adapter_name] = ModelScores(results, metrics, seconds, num_tokens)
    return scores
