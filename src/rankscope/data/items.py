"""Items: one row of a data set in the one form that training and evaluation read."""

import re
from dataclasses import dataclass, field

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the options of a multiple-choice item, in order."""
NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """One row, whatever its shape was in the file."""

    item_id: str
    """Stable: ``<task>/<split file>/<row number>``, rows counted from 1."""
    prompt: str
    """Rendered prompt; empty for a plain text row."""
    completion: str
    """Training target: the right option's text or letter, a chain with its answer, a reply."""
    choices: tuple[str, ...] = ()
    """Option texts of a multiple-choice row."""
    answer: int | None = None
    """Index of the right option, from 0."""
    subject: str | None = None
    messages: tuple[Message, ...] = ()
    """All turns of a chat row; ``prompt`` and ``completion`` are then of its last turn."""
    reference: str = ""
    """Gold answer for generation scorers, such as ``18`` of a chain that ends ``#### 18``."""
    question: str = ""
    """The row's own words, without template and options: what the leak search compares."""
    contexts: tuple[str, ...] = ()
    """Prompts by option, where options stand inside the question: ``completion`` is scored after
    each, and ``prompt`` is the right option's."""
    fewshot: tuple[tuple[str, str], ...] = ()
    """Answered questions before this one: (prompt, answer) of each."""
    where: str = field(default="", compare=False)
    """Where the row was read, such as ``data/train.jsonl, row 3``; no part of what the item is."""

    @property
    def location(self) -> str:
        """For messages: where the row can be mended, or the item's id where that is not known."""
        return self.where or self.item_id

    @property
    def content(self) -> tuple[str, str]:
        """Question and gold answer, normalized: equal contents are the same item twice."""
        gold = self.choices[self.answer] if self.answer is not None else self.completion
        return normalized(self.question or self.prompt), normalized(gold)


def normalized(text: str) -> str:
    """Lower case, letters and digits only, one space between words: how texts are compared."""
    return NOT_A_WORD.sub(" ", text.lower()).strip()
