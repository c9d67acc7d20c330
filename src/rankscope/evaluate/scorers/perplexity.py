"""Perplexity of texts: cross-entropy of every token, however long the text.

A text longer than a window is cut into consecutive windows. Every token is scored once; the first
token of a later window sees only the last token of the window before it (strided evaluation
without overlap). The first token of a text is scored after the tokenizer's begin token, or its end
token if it has none, as in lm-evaluation-harness's rolling log-likelihood.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankscope.errors import UserError
from rankscope.evaluate.scorers.scorer import Scorer

if TYPE_CHECKING:
    from rankscope.data.encode import EncodedRow, Encoder
    from rankscope.data.items import Item
    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.metrics import ModelScores
    from rankscope.evaluate.scorers.scorer import ScoringJob

WINDOW = 1024
"""Most tokens of a window if the encoder's rows have no limit."""


class PerplexityScorer(Scorer["list[EncodedRow]"]):
    """Log p of every token of whole texts, each encoded as a list of windows.

    ``logprob_per_token`` is the mean over texts of each text's mean, nats; the other metrics are
    over all tokens or UTF-8 bytes of all texts. A model whose log-probabilities are not finite
    raises IntegrityError.
    """

    name = "perplexity"
    summary = "log p of every token of a text"
    metrics = {
        "logprob_per_token": "",
        "logprob_per_token_pooled": "",
        "logprob_per_byte_pooled": "",
        "bits_per_byte": "",
        "perplexity": "",
    }
    unit = "log_probability"

    def encode(
        self, encoder: "Encoder", items: "Sequence[Item]", spec: "TaskSpec", context: int | None
    ) -> "list[list[EncodedRow]]":
        from rankscope.data.encode import EncodedRow

        longest = encoder.max_length or WINDOW
        width = min(longest, context or longest)
        texts = []
        for item in items:
            if item.prompt or item.messages:
                raise UserError(
                    f"{item.location}: scorer 'perplexity' scores whole texts; expected rows with "
                    "only a field 'text' (scorer 'loss' scores answers after their prompts)"
                )
            ids = [encoder.start_id, *encoder.text_ids(item.completion)]
            if len(ids) < 2:
                raise UserError(f"{item.location}: the text has no tokens")
            # Windows overlap by the one token that the next window's first token is scored after.
            windows = [ids[at : at + width] for at in range(0, len(ids) - 1, width - 1)]
            texts.append(
                [
                    EncodedRow(tuple(window), (False, *[True] * (len(window) - 1)), truncated=False)
                    for window in windows
                ]
            )
        return texts

    def encoder_settings(self, encoder: "Encoder") -> dict[str, Any]:
        return {"max_length": encoder.max_length or WINDOW}

    def run(self, job: "ScoringJob") -> "dict[str | None, ModelScores]":
        import numpy as np

        from rankscope.evaluate.likelihood import check_finite, row_logprobs
        from rankscope.evaluate.metrics import ModelScores, mean
        from rankscope.records import ItemResult

        split = job.split
        texts: Sequence[Sequence[EncodedRow]] = split.encoded
        windows = [window for text in texts for window in text]
        owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        counts = [sum(sum(window.is_label) for window in text) for text in texts]
        num_bytes = sum(len(item.completion.encode()) for item in split.items)
        num_tokens = sum(len(window.input_ids) for window in windows)
        scores = {}
        by_model = row_logprobs(job.base, windows, job.adapter_names, job.settings.batch_tokens)
        for name, (of_windows, seconds) in by_model.items():
            totals = np.bincount(owners, weights=of_windows, minlength=len(texts)).astype(float)
            check_finite(split.items, totals, name)
            results = [
                ItemResult(
                    item_id=item.item_id,
                    subject=item.subject,
                    score=total / count,
                    gold="",
                    prediction="",
                    gold_logprob=total,
                )
                for item, total, count in zip(split.items, totals.tolist(), counts, strict=True)
            ]
            total = math.fsum(totals)
            per_token = total / sum(counts)
            metrics = {
                "logprob_per_token": mean([result.score for result in results]),
                "logprob_per_token_pooled": per_token,
                "logprob_per_byte_pooled": total / num_bytes,
                "bits_per_byte": -total / num_bytes / math.log(2),
                "perplexity": math.exp(min(-per_token, 700.0)),
            }
            scores[name] = ModelScores(results, metrics, seconds, num_tokens)
        return scores
