"""Multiple choice by the letters of the options."""

from dataclasses import replace

from rankscope.data.items import LETTERS, Item
from rankscope.evaluate.scorers.choice import ChoiceScorer


class OptionLetterScorer(ChoiceScorer):
    name = "option_letter"
    summary = "log p of every letter"
    metrics = {"letter": ""}
    metric_choices = ("letter",)
    needs_listed_options = True
    scores_texts = False

    def adapt_row(self, content: Item) -> Item:
        content = super().adapt_row(content)
        assert content.answer is not None
        return replace(content, completion=LETTERS[content.answer])
