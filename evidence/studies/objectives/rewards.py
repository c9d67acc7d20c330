"""Rewards of the studies in this folder; each is 1 or 0."""

import re


def is_even(answer: str, gold: str, prompt: str) -> float:
    """Whether the last number of the answer is even, right or not."""
    numbers = re.findall(r"[0-9]+", answer)
    return float(bool(numbers) and int(numbers[-1]) % 2 == 0)
