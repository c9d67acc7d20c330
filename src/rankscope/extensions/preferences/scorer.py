"""Pairs of a preferred and a rejected answer: a model's learned preference against the base."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from rankscope.data.items import Item
from rankscope.data.rows import BadRow
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers.choice import ChoiceScorer

if TYPE_CHECKING:
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.evaluate.token_trees import Floats


class PreferenceScorer(ChoiceScorer):
    """Right if log p of the chosen answer rose against the rejected one's.

    This is the reward of direct preference optimization (2305.18290); the base's own score is 0.5.
    An item whose log-probabilities are not finite counts as 0.
    """

    name = "preference"
    summary = "log p of the chosen answer less the rejected one's, against the base"
    metrics = {
        "reward_acc": "a larger margin than the base's; an equal one counts as half",
        "margin": "mean over the base's, nats",
        "acc": "the chosen answer is the likelier one",
    }
    preset = "dpo"
    scores_texts = True
    compares_with_base = True

    def adapt_row(self, content: Item) -> Item:
        if len(content.choices) != 2:
            raise BadRow(f"{len(content.choices)} choices", "a chosen and a rejected answer")
        return super().adapt_row(content)

    def summarize(self, split: "EncodedSplit", values: "Sequence[Floats]") -> ModelScores:
        from rankscope.records import ItemResult

        results, margins, hits = [], [], []
        for item, (question,), logprobs in zip(split.items, split.encoded, values, strict=True):
            assert item.answer is not None
            texts = tuple(logprobs[:2].tolist())
            is_finite = bool(np.isfinite(logprobs[:2]).all())
            own = texts[item.answer] - texts[1 - item.answer]
            margin = own - (own if item.base_margin is None else item.base_margin)
            if is_finite:
                margins.append(margin)
            hits.append(float(own > 0))
            results.append(
                ItemResult(
                    item_id=item.item_id,
                    subject=item.subject,
                    score=(0.5 + 0.5 * float(np.sign(margin))) if is_finite else 0.0,
                    gold=item.choices[item.answer],
                    prediction=item.choices[item.answer if own > 0 else 1 - item.answer],
                    gold_logprob=texts[item.answer] if is_finite else None,
                    gold_tokens=len(question.continuations[item.answer]),
                    option_logprobs=texts,
                    option_tokens=tuple(len(ids) for ids in question.continuations[:2]),
                )
            )
        metrics = {
            "reward_acc": fmean([result.score for result in results]),
            "margin": fmean(margins) if margins else 0.0,
            "acc": fmean(hits),
        }
        if len(margins) < len(results):
            metrics["not_finite"] = 1 - len(margins) / len(results)
        return ModelScores(results, metrics)
