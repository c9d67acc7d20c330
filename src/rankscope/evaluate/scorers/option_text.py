"""Multiple choice by the text of the options."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.scorers.choice import ChoiceScorer
from rankscope.evaluate.scorers.scorer import Question

if TYPE_CHECKING:
    from rankscope.data.registry import TaskSpec


class OptionTextScorer(ChoiceScorer):
    """Takes the likeliest option text as the answer.

    Options may be part of the question, as in WinoGrande. Then the text after the option is scored
    after each of them (partial scoring, Trinh & Le, 1806.02847): one prompt per option, all with
    the same continuation.
    """

    name = "option_text"
    summary = "log p of every option's text after the prompt"
    metrics = {
        "acc": "sum",
        "acc_norm": "per character",
        "acc_bytes": "per UTF-8 byte",
        "acc_token": "per token",
        "letter": "if the prompt lists the options",
    }
    metric_choices = tuple(metrics)
    scores_texts = True

    def adapt_row(self, content: Item) -> Item:
        adapted = super().adapt_row(content)
        if not content.contexts:
            return adapted
        return replace(content, completion=content.continuation)

    def questions(self, encoder: Encoder, item: Item, spec: "TaskSpec") -> list[Question]:
        if not item.contexts:
            return super().questions(encoder, item, spec)
        questions = []
        for context in item.contexts:
            with_option = replace(item, prompt=context)
            prompt = encoder.prompt_ids(with_option)
            answer = encoder.answer_ids(item.completion, with_option)
            if not prompt or not answer:
                raise UserError(item.location, "no text before, or after, the option")
            questions.append(Question(prompt, [answer]))
        return questions
