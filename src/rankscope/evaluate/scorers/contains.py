"""Generated answers that must contain the gold answer."""

import re

from regex import Pattern

from rankscope.data.items import Item
from rankscope.evaluate.scorers.generation import GenerationScorer, Judgment, normalized_answer


class ContainsScorer(GenerationScorer):
    """Right if the answer contains the gold answer as whole words, case and spacing aside.

    With ``extract``, the part that it matches must contain the gold answer.
    """

    name = "contains"
    summary = "greedy generation; the answer contains the gold answer as whole words"
    metrics = {"contains": "", "stopped": ""}

    def must_write(self, item: Item, pattern: Pattern[str] | None) -> str:
        return item.reference or item.completion

    def judge_answer(self, item: Item, text: str, pattern: Pattern[str] | None) -> Judgment:
        gold = normalized_answer(item.reference or item.completion)
        part = self.part(pattern, text)
        answer = None if part is None else normalized_answer(part)
        whole_words = rf"(?<!\w){re.escape(gold)}(?!\w)"
        is_right = bool(gold) and answer is not None and re.search(whole_words, answer) is not None
        return float(is_right), gold, answer
