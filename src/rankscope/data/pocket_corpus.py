"""What the pocket model is pretrained on: texts drawn from the pocket world."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rankscope.data.pocket_world import (
    EVALUATED_QUESTION,
    STATEMENTS,
    TRAINED_QUESTIONS,
    Fact,
    PocketRow,
    math_problems,
    math_row,
    pocket_world,
    rng_of,
    running_total,
)

EASY_STEPS = (1, 2, 3)


def easy_sums(count: int, seed: int) -> list[PocketRow]:
    """Rows like those of `pocket_gsm`, of one to three steps: what pretraining teaches."""
    rng = rng_of("easy sums", seed)
    return [running_total(rng.choice(EASY_STEPS), rng) for _ in range(count)]


# Shares of the pretraining documents, in percent. Statements outweigh questions: a statement is
# what the cloze task asks for and it is the form that law knowledge has, too.
CORPUS_MIXTURE = {
    "person stated": 28,
    "person asked": 24,
    "old drug": 8,
    "known case stated": 8,
    "easy sum": 18,
    "math": 14,
}


def pretraining_corpus(seed: int, num_documents: int) -> Iterator[str]:
    """Documents of the pretraining mixture, one short text each, without special tokens.

    Args:
        seed: chooses the order and the sums; the facts are the world's and do not change.
        num_documents: how many to yield.
    """
    world = pocket_world()
    rng = rng_of("corpus", seed)
    persons = list(itertools.chain.from_iterable(world.persons))
    old_drugs = list(itertools.chain.from_iterable(world.drugs_old))
    known_cases = list(itertools.chain.from_iterable(world.cases_stated_in_pretraining))
    questions = (*TRAINED_QUESTIONS, EVALUATED_QUESTION)
    facts: dict[str, tuple[list[Fact], tuple[str, ...]]] = {
        "person stated": (persons, STATEMENTS),
        "person asked": (persons, questions),
        "old drug": (old_drugs, STATEMENTS + questions),
        "known case stated": (known_cases, STATEMENTS),
    }
    sources = list(CORPUS_MIXTURE)
    weights = list(CORPUS_MIXTURE.values())
    known_math = math_problems()["train"]
    for source in rng.choices(sources, weights, k=num_documents):
        if source == "easy sum":
            row = running_total(rng.choice(EASY_STEPS), rng)
            yield f"{row['question']} {row['answer']}"
        elif source == "math":
            row = math_row(rng.choice(known_math), rng)
            yield f"{row['question']} {row['choices'][row['answer']]}"
        else:
            known, templates = facts[source]
            fact = rng.choice(known)
            yield f"{fact.render(rng.choice(templates))} {fact.value}"
