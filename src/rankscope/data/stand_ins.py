"""Stand-ins for the rows of a plan, which needs their lengths and not their tokens.

Rows ranked by their number of characters are cut into spans, and one row of each span, tokenized
once, stands for all of it. The number of tokens of 512 rows in place of 14,042 is then off by less
than 2 % on every data set that was tried, since rows of equally many characters
have about equally many tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rankscope.data.encode import EncodedRow, Encoder, LabelMode
from rankscope.data.items import Item
from rankscope.data.tasks import LoadedTask

Tokenized = TypeVar("Tokenized")

SPANS = 512  # Most rows of one split that are tokenized


class CachingEncoder(Encoder):
    """Tokenizes an item once, however many it stands for. Items must outlive it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._cache: dict[tuple[object, ...], Any] = {}

    def prompt_ids(self, item: Item) -> list[int]:
        return self._once(super().prompt_ids, id(item), item)

    def answer_ids(self, text: str, item: Item | None = None) -> list[int]:
        return self._once(super().answer_ids, (text, id(item)), text, item)

    def training_row(self, item: Item, labels: LabelMode) -> EncodedRow | None:
        return self._once(super().training_row, (labels, id(item)), item, labels)

    def _once(self, encode: Callable[..., Tokenized], key: object, *args: Any) -> Tokenized:
        place = (encode.__name__, key)
        if place not in self._cache:
            self._cache[place] = encode(*args)
        value: Tokenized = self._cache[place]
        return value


def stand_ins(task: LoadedTask) -> LoadedTask:
    """A task whose items are those that stand for its own, in the same order.

    The items of a mixture to evaluate stay: each is looked up among its parts'.
    """
    train = by_length(task.train)
    if task.parts:
        return replace(task, train=train)
    return replace(
        task, train=train, validation=by_length(task.validation), test=by_length(task.test)
    )


def by_length(items: Sequence[Item], spans: int = SPANS) -> tuple[Item, ...]:
    """For each item the one in the middle of its span; the longest stands for itself."""
    order = sorted(range(len(items)), key=lambda index: num_characters(items[index]))
    chosen = list(items)
    for span in range(spans):
        members = order[len(order) * span // spans : len(order) * (span + 1) // spans]
        for index in members:
            chosen[index] = items[members[len(members) // 2]]
    if order:
        chosen[order[-1]] = items[order[-1]]
    return tuple(chosen)


def num_characters(item: Item) -> int:
    """Characters of everything that becomes tokens."""
    turns = sum(len(message.content) for message in item.messages)
    examples = sum(len(text) for pair in item.fewshot for text in pair)
    return len(item.prompt) + len(item.completion) + sum(map(len, item.choices)) + turns + examples
