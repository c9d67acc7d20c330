"""The base class of scorers: how items become tokens, how models run on them, which scores
result."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers import ScorerKind, get_scorer

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.models.base import Base

Encoded = TypeVar("Encoded")  # One item as token ids


@dataclass(frozen=True, slots=True)
class Question:
    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest row, which must fit into the model's context."""
        return len(self.prompt) + max(map(len, self.continuations))


class ItemTokens(NamedTuple):
    """The work of one model for one item."""

    read: int  # Tokens of prompt and answers
    predicted: int  # Positions whose logits are computed
    written: int = 0  # Tokens generated, an estimate
    gold: int = 0
    """Tokens of prompt and gold answer, read once more for log p of that answer."""
    rows: int = 1  # Rows that ``read`` and ``predicted`` are spread over
    again: int = 0  # Tokens of prompts, read once more for each further answer if rows run alone

    @property
    def total(self) -> int:
        return self.read + self.written + self.gold


class Scorer(ScorerKind, ABC, Generic[Encoded]):
    """One way to score the items of a task under many models at once.

    A subclass sets the attributes and implements :meth:`encode` and :meth:`run`. Its module imports
    torch and transformers inside methods only, because the configuration imports every scorer.
    """

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the scorer of a name. Raises ValueError: it is no scorer of this class."""
        if isinstance(scorer := get_scorer(name), cls):
            return scorer
        raise ValueError(f"scorer {name!r} is no {cls.__name__}")

    @abstractmethod
    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: "TaskSpec", context: int | None
    ) -> list[Encoded]:
        """Encode every item as token ids.

        ``context`` is the model's limit of tokens; None is no limit. Raises UserError: an item
        cannot be scored.
        """

    def item_tokens(
        self, encoder: Encoder, item: Item, encoded: Encoded, max_new_tokens: int
    ) -> ItemTokens:
        """Return a model's work for an item, for plans; by default one token after the context.

        An answer to be written counts as long as the answer in the data, if there is one.
        """
        return ItemTokens(max(1, self.num_tokens(encoded)), 1)

    def num_tokens(self, encoded: Encoded) -> int:
        """Return the tokens of context that an item needs; 0 if items fit by construction."""
        return 0

    def truncate_left(self, encoded: Encoded, split: "EncodedSplit", where: str) -> Encoded:
        """Cut an item at its beginning to fit the context; ``where`` names it in errors."""
        raise NotImplementedError

    def must_write(self, item: Item, pattern: "Pattern[str] | None") -> str:
        """Return the text without which no answer is right; empty if there are other ways.

        ``pattern`` is the task's ``extract``.
        """
        return ""

    def is_cut_at_end(self, encoded: Encoded) -> bool:
        """Whether only the first tokens of the item are scored."""
        return False

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        """Return settings of the encoder that scores depend on; they are part of the task's
        hash."""
        return {}

    @abstractmethod
    def run(
        self, base: "Base", split: "EncodedSplit", adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        """Score every model, items in order.

        The adapters are attached to ``base``; None is the bare base.
        """
