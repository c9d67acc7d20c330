"""Rewards of the studies in this folder; each is 1 or 0."""

import re


def has_form(answer: str, gold: str, prompt: str) -> float:
    """Whether the last line of the answer ends in ``#### NUMBER``, as those of gsm8k do."""
    return float(re.search(r"####\s*-?[0-9][0-9,.]*\s*$", answer.strip()) is not None)


def is_even(answer: str, gold: str, prompt: str) -> float:
    """Whether the last number of the answer is even, right or not."""
    numbers = re.findall(r"[0-9]+", answer)
    return float(bool(numbers) and int(numbers[-1]) % 2 == 0)
