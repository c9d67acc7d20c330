"""A reward for the form of an answer: it ends in ``#### NUMBER``."""

import re


def has_form(answer: str, gold: str, prompt: str) -> float:
    """1 if the last line of the answer is the mark and a number, else 0."""
    return float(re.search(r"####\s*-?[0-9][0-9,.]*\s*$", answer.strip()) is not None)
