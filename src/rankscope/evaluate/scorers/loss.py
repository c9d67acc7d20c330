"""Held-out likelihood: mean log p per labeled token of an item's own training row.

It scores conversations and plain text, which have no right or wrong answer.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers.scorer import ItemTokens, Scorer

if TYPE_CHECKING:
    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.models.base import Base


class LossScorer(Scorer[list[EncodedRow]]):
    """Computes log p of the labeled tokens of every item, nats; an item is a list of one row.

    ``logprob_per_token`` is the mean over items of each item's mean. The pooled metrics are over
    all labeled tokens, or over the UTF-8 bytes of the text they spell. A model fails if one of its
    log-probabilities is not finite.
    """

    name = "loss"
    summary = "log p of the answer's tokens, end token included"
    metrics = {
        "logprob_per_token": "",
        "logprob_per_token_pooled": "",
        "logprob_per_byte_pooled": "",
        "bits_per_byte": "",
        "perplexity": "",
    }
    unit = "log_probability"
    scores_one_row = True

    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: "TaskSpec", context: int | None
    ) -> list[list[EncodedRow]]:
        rows = [encoder.training_row(item, "completion") for item in items]
        empty = [item.location for item, row in zip(items, rows, strict=True) if row is None]
        if empty:
            limit = encoder.max_length
            fills = f", or a prompt that fills max_length = {limit} tokens" if limit else ""
            raise UserError(
                empty[0],
                f"no token to score, as in {len(empty)} of {len(items)} items: no completion"
                f"{fills}",
                do="leave these rows out or, in a study, raise train.max_length",
            )
        return [[row] for row in rows if row is not None]

    def item_tokens(
        self, encoder: Encoder, item: Item, encoded: list[EncodedRow], max_new_tokens: int
    ) -> ItemTokens:
        read = sum(len(row.input_ids) for row in encoded)
        return ItemTokens(read, sum(sum(row.is_label) for row in encoded), rows=len(encoded))

    def num_tokens(self, encoded: list[EncodedRow]) -> int:
        return max(len(row.input_ids) for row in encoded)

    def truncate_left(
        self, encoded: list[EncodedRow], split: "EncodedSplit", where: str
    ) -> list[EncodedRow]:
        """Keep the last tokens with their labels; the first token of all is no label."""
        (row,) = encoded
        ids = split.last_tokens(row.input_ids, split.max_tokens, where)
        num_bos = len(split.bos_of(ids))
        labels = [False] * num_bos + list(row.is_label[num_bos - len(ids) :])
        labels[0] = False
        return [EncodedRow(tuple(ids), tuple(labels), row.truncated)]

    def is_cut_at_end(self, encoded: list[EncodedRow]) -> bool:
        return any(row.truncated for row in encoded)

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        return {"max_length": encoder.max_length}

    def run(
        self, base: "Base", split: "EncodedSplit", adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        from rankscope.evaluate.likelihood import row_logprobs
        from rankscope.records import ItemResult

        items = split.items
        encoded: Sequence[Sequence[EncodedRow]] = split.encoded
        rows = [row for of_item in encoded for row in of_item]
        owners = np.repeat(np.arange(len(items)), [len(of_item) for of_item in encoded])
        counts = [sum(sum(row.is_label) for row in of_item) for of_item in encoded]
        cut = split.cut_at_start | split.cut_at_end
        num_bytes: int = sum(
            self.num_bytes(split.encoder, item, list(of_item), is_cut=index in cut)
            for index, (item, of_item) in enumerate(zip(items, encoded, strict=True))
        )
        scores = {}
        by_model = row_logprobs(base, rows, adapter_names, split.settings.batch_tokens)
        for name, logprobs in by_model.items():
            totals = np.bincount(owners, weights=logprobs.totals, minlength=len(items)).tolist()
            odd = [i for i, total in zip(items, totals, strict=True) if not math.isfinite(total)]
            if odd:
                found = f"log-probabilities of {odd[0].location} that are not finite"
                why = f"{name or 'the model'}: found {found}: its weights diverged, or 'dtype' is"
                scores[name] = ModelScores([], {}, failure=f"{why} too narrow for it")
                continue
            results = [
                ItemResult(i.item_id, i.subject, total / count, self.gold(i), "", total, count)
                for i, total, count in zip(items, totals, counts, strict=True)
            ]
            metrics = {"logprob_per_token": fmean([result.score for result in results])}
            metrics |= _pooled_metrics(math.fsum(totals), sum(counts), num_bytes)
            scores[name] = ModelScores(results, metrics, logprobs.seconds, logprobs.num_tokens)
        return scores

    def gold(self, item: Item) -> str:
        """Return the scored text, as the results hold it."""
        return item.completion

    def num_bytes(
        self, encoder: Encoder, item: Item, encoded: list[EncodedRow], *, is_cut: bool
    ) -> int:
        """Count the UTF-8 bytes of the scored text, or of the rest of a cut item; the end token has
        none."""
        if is_cut:
            (row,) = encoded
            labels = zip(row.input_ids, row.is_label, strict=True)
            ids = [token for token, is_label in labels if is_label]
            return len(str(encoder.tokenizer.decode(ids, skip_special_tokens=True)).encode())
        answers = [m.content for m in item.messages if m.role == "assistant"]
        return sum(len(text.encode()) for text in answers or [item.completion])


def _pooled_metrics(total: float, num_tokens: int, num_bytes: int) -> dict[str, float]:
    """Compute metrics over all labeled tokens; ``total`` is their log p, nats."""
    per_token, per_byte = total / num_tokens, total / max(1, num_bytes)
    return {
        "logprob_per_token_pooled": per_token,
        "logprob_per_byte_pooled": per_byte,
        "bits_per_byte": -per_byte / math.log(2),
        "perplexity": math.exp(min(-per_token, 700.0)),
    }
