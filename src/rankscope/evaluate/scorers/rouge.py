"""Generated answers by their longest common subsequence of words with the gold answer."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankscope.evaluate.scorers.generation import GenerationScorer, Judgement, first_match

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.items import Item


class RougeScorer(GenerationScorer):
    """ROUGE-L: F1 of the longest common subsequence of words, case and punctuation aside."""

    name = "rouge"
    summary = "greedy generation; ROUGE-L, the F1 of the longest common subsequence of words"
    metrics = {"rouge_l": "", "stopped": ""}

    def judge_answer(self, item: "Item", text: str, pattern: "Pattern[str] | None") -> Judgement:
        gold = item.reference or item.completion
        part = first_match(pattern, text) if pattern else text
        return Judgement(rouge_l(part or "", gold), gold, part)


def rouge_l(answer: str, gold: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), 0 to 1; words as in the package
    rouge-score, but of every alphabet."""
    written, expected = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, gold))
    common = longest_common_subsequence(written, expected)
    return 2 * common / (len(written) + len(expected)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]
