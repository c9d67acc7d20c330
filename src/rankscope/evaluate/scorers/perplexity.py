"""Perplexity of texts: cross-entropy of every token, however long the text.

A text longer than a window is cut into consecutive windows. Every token is scored once; the first
token of a later window sees only the last token of the window before it (strided evaluation
without overlap). The first token of a text is scored after the tokenizer's begin token, or its end
token if it has none, as in lm-evaluation-harness's rolling log-likelihood.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.scorers.loss import LossScorer

if TYPE_CHECKING:
    from rankscope.data.registry import TaskSpec

WINDOW = 1024  # Most tokens of a window if the encoder's rows have no limit


class PerplexityScorer(LossScorer):
    """Computes log p of every token of whole texts, each encoded as a list of windows."""

    name = "perplexity"
    summary = "log p of every token of a text"
    scores_one_row = False

    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: "TaskSpec", context: int | None
    ) -> list[list[EncodedRow]]:
        longest = encoder.max_length or WINDOW
        width = min(longest, context or longest)
        texts = []
        for item in items:
            if item.prompt or item.messages:
                found, expected = "a row with a prompt", "rows with only a field 'text'"
                do = "choose scorer 'loss', which scores answers after their prompts"
                raise UserError(f"{item.location}: scorer 'perplexity'", found, expected, do)
            ids = [encoder.start_id, *encoder.text_ids(item.completion)]
            if len(ids) < 2:
                raise UserError(item.location, "no tokens in the text")
            # A window begins with the last token of the window before, which is scored there.
            windows = [ids[at : at + width] for at in range(0, len(ids) - 1, width - 1)]
            labels = [(False, *[True] * (len(window) - 1)) for window in windows]
            pairs = zip(map(tuple, windows), labels, strict=True)
            texts.append([EncodedRow(*pair, truncated=False) for pair in pairs])
        return texts

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        return {"max_length": encoder.max_length or WINDOW}

    def gold(self, item: Item) -> str:
        return ""
