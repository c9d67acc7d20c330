"""Items: one row of a data set in the single form that training and evaluation read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # Names of the options of a multiple-choice item, in order
NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Item:
    """One row in the form that training and evaluation read.

    A reader fills in the contents of a row; ``data/tasks.py`` adds its id and prompt.
    """

    item_id: str = ""
    """``<task>/<split file>/<key>``. The key is the row's number, counted from 1, or a hash of the
    content of the user's own rows."""
    prompt: str = ""  # Rendered prompt; empty for a plain text row
    completion: str = ""
    """Training target: the text or letter of the right option, a written answer, or a reply."""
    choices: tuple[str, ...] = ()  # Option texts of a multiple-choice row
    answer: int | None = None  # Index of the right option, from 0
    subject: str | None = None
    messages: tuple[Message, ...] = ()
    """All turns of a chat row; ``prompt`` and ``completion`` then belong to the last turn."""
    reference: str = ""
    """Gold answer of generation scorers, such as ``18`` for a chain that ends in ``#### 18``."""
    question: str = ""
    """The row's question without template and options; the search for contamination reads it."""
    contexts: tuple[str, ...] = ()
    """Prompt of each option, if the options are inside the question. ``completion`` is scored after
    each, and ``prompt`` is the right option's."""
    fewshot: tuple[tuple[str, str], ...] = ()
    """Solved examples before this question, as (prompt, answer)."""
    source_row: str = field(default="", compare=False)
    """File and row, such as ``data/train.jsonl, row 3``; not part of the item's identity."""

    # The scorer and the prompt need these:
    base_margin: float | None = field(default=None, compare=False)
    """Log p of the right one of two choices minus the other's, under the base, in nats; None until
    it is computed."""
    continuation: str = ""  # The text after any option, scored after each of the ``contexts``
    template: str = "{question}"  # Default prompt of the shape
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row's own fields, for prompt templates."""

    @property
    def location(self) -> str:
        """Place of the row for error messages: its file and row, or else the item id."""
        return self.source_row or self.item_id

    @property
    def gold(self) -> str:
        """The right option's text, or the written answer, as in the row."""
        return self.choices[self.answer] if self.answer is not None else self.completion

    @cached_property
    def content(self) -> tuple[str, str]:
        """Normalized question and gold answer; two items with equal content are duplicates."""
        return _normalize_text(self.question or self.prompt), _normalize_text(self.gold)


def _normalize_text(text: str) -> str:
    """Keep letters and digits only, in lower case, with one space between words."""
    return NOT_A_WORD.sub(" ", text.lower()).strip()
