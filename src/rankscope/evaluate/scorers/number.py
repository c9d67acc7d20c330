"""Generated answers that end in a number."""

from dataclasses import replace

from regex import Pattern

from rankscope.data.items import Item
from rankscope.data.numbers import ANSWER_MARK, extract_number, gold_number
from rankscope.data.rows import BadRow
from rankscope.evaluate.scorers.generation import EqualAnswerScorer


class NumberScorer(EqualAnswerScorer):
    """Compares the final number of the answer with the gold number."""

    name = "number"
    summary = "greedy generation; its final number equals the gold's"
    metrics = {"exact_match": "", "answered": "", "stopped": ""}

    def adapt_row(self, content: Item) -> Item:
        content = super().adapt_row(content)
        written = content.completion if ANSWER_MARK in content.completion else content.reference
        gold = gold_number(written)
        if gold is None:
            raise BadRow(
                f"no single number for scorer 'number' in {content.reference[:60]!r}",
                "one in digits 0 to 9, as in '#### 18': no fraction, power, time or list",
            )
        # Only the mark tells a sign from a dash, so the number may be unreadable without it.
        is_readable = extract_number(content.reference) == gold
        return content if is_readable else replace(content, reference=gold)

    def comparable(self, text: str) -> str | None:
        return extract_number(text)

    def gold(self, item: Item, pattern: Pattern[str] | None) -> str:
        return extract_number(item.reference or item.completion) or ""

    must_write = gold
