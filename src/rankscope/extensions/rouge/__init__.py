"""Scorer of generated answers by their longest common subsequence of words with the gold answer."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from regex import Pattern

from rankscope.data.items import Item
from rankscope.evaluate.scorers.generation import GenerationScorer, Judgment


class RougeScorer(GenerationScorer):
    """Scores by ROUGE-L: F1 of the longest common subsequence of words, case and punctuation
    aside."""

    name = "rouge"
    summary = "greedy generation; ROUGE-L, the F1 of the longest common subsequence of words"
    metrics = {"rouge_l": "", "stopped": ""}

    def judge_answer(self, item: Item, text: str, pattern: Pattern[str] | None) -> Judgment:
        gold = item.reference or item.completion
        part = self.part(pattern, text)
        return rouge_l(part or "", gold), gold, part


def rouge_l(answer: str, gold: str) -> float:
    """Return F1 of the longest common subsequence of words (Lin 2004), 0 to 1.

    Words are those of the package rouge-score, but in every alphabet.
    """
    written, expected = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, gold))
    common = longest_common_subsequence(written, expected)
    return 2 * common / (len(written) + len(expected)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the subsequence's length, by operations on numbers with a bit per word of ``second``.

    The method is Hyyro's (2004).
    """
    places = defaultdict(list)
    for place, word in enumerate(second):
        places[word].append(place)

    @lru_cache(1000)
    def bits(word: str) -> int:
        mask = bytearray(len(second) // 8 + 1)
        for place in places[word]:
            mask[place // 8] |= 1 << place % 8
        return int.from_bytes(mask, "little")

    row = every = (1 << len(second)) - 1  # a bit is 0 where the length grows
    for word in first:
        if word in places:
            grown = row & bits(word)
            row = (row + grown | row - grown) & every
    return len(second) - row.bit_count()
