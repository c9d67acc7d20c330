"""A scorer from one file: log p of the whole gold answer, however many tokens it has."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers.scorer import Scorer

if TYPE_CHECKING:
    from rankscope.data.encode import Encoder
    from rankscope.data.items import Item
    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.evaluate.scorers.scorer import Question
    from rankscope.models.base import Base


class AnswerScorer(Scorer["Question"]):
    """The summed log p of ``completion`` after the prompt."""

    name = "answer_logprob"
    summary = "log p of the whole gold answer"
    metrics = {"logprob_per_answer": ""}
    unit = "log_probability"

    def encode(
        self, encoder: "Encoder", items: "Sequence[Item]", spec: "TaskSpec", context: int | None
    ) -> "list[Question]":
        from rankscope.evaluate.scorers.scorer import Question

        return [
            Question(encoder.prompt_ids(item), [encoder.answer_ids(item.completion, item)])
            for item in items
        ]

    def num_tokens(self, encoded: "Question") -> int:
        return encoded.num_tokens

    def run(
        self, base: "Base", split: "EncodedSplit", adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        from rankscope.evaluate.likelihood import continuation_logprobs
        from rankscope.records import ItemResult

        batch_tokens = split.settings.batch_tokens
        by_model = continuation_logprobs(base, split.encoded, adapter_names, batch_tokens)
        scores = {}
        for name, logprobs in by_model.items():
            results = [
                ItemResult(item.item_id, item.subject, float(value), item.completion, "")
                for item, (value,) in zip(split.items, logprobs.values, strict=True)
            ]
            metrics = {"logprob_per_answer": fmean([result.score for result in results])}
            scores[name] = ModelScores(results, metrics, logprobs.seconds, logprobs.num_tokens)
        return scores
