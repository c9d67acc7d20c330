"""The base class of scorers: how items become tokens, how models run on them, which scores
result."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.rows import BadRow
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.models.base import Base

ScoreUnit = Literal["accuracy", "log_probability"]
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


class Scorer(ABC, Generic[Encoded]):
    """One way to score the items of a task under many models at once.

    A subclass sets the attributes and implements :meth:`encode` and :meth:`run`. Its module imports
    torch and transformers inside methods only, because the configuration imports every scorer.
    """

    name: str  # Value of a task's ``scorer``
    summary: str  # What is computed, for the documentation
    metrics: Mapping[str, str]
    """Maps each metric to its meaning ("" if the name says it); the first one is the default
    primary metric."""
    unit: ScoreUnit | None = "accuracy"
    """Unit of the primary metric: a share of 1, or nats per token; None for another unit."""
    version: int = 1
    """Version of user tasks with this scorer; raise it when a change of the code moves scores."""
    generates: bool = False
    """Whether models write answers, so that ``stop``, ``extract`` and ``max_new_tokens`` apply."""
    compares_with_base: bool = False  # Items have ``base_margin``, see ``extensions/reference``
    needs_choices: bool = False  # Rows must have choices and the index of the right one
    needs_listed_options: bool = False  # The prompt must show the lettered options
    metric_choices: tuple[str, ...] = ()  # Metrics that a task may name as its primary metric
    scores_one_row: bool = False
    """Whether every item is one row with fixed target tokens."""

    @property
    def default_metric(self) -> str:
        return next(iter(self.metrics))

    def primary_metrics(self, spec: "TaskSpec") -> tuple[str, ...]:
        """Return the ``metric_choices`` that are measured for a task."""
        return self.metric_choices

    def check_task(self, spec: "TaskSpec") -> None:
        """Raise UserError for settings of a task that this scorer cannot use."""
        where = f"task {spec.name!r}, scorer {self.name!r}"
        if self.needs_listed_options and not spec.lists_options:
            raise UserError(
                where,
                "a prompt without {options}",
                "it, so that the model sees which letter is which",
            )
        for key, value in (("stop", spec.stop), ("extract", spec.extract)):
            if value and not self.generates:
                raise UserError(
                    where,
                    repr(key),
                    "it for generated answers alone",
                    "remove it, or choose a scorer that generates, such as 'number'",
                )
        known = self.primary_metrics(spec)
        if spec.primary_metric is not None and spec.primary_metric not in known:
            raise UserError(
                where,
                f"'primary_metric' {spec.primary_metric!r}, which is not measured",
                " or ".join(map(repr, known)) or "none",
            )
        if spec.num_fewshot and self.unit == "log_probability":
            raise UserError(
                where, "'num_fewshot'", "it for questions with answers alone", "remove it"
            )

    def adapt_row(self, content: Item) -> Item:
        """Give a row the completion and gold answer that this scorer compares.

        Raises BadRow: the row cannot be scored.
        """
        if self.needs_choices and content.answer is None:
            found = f"a row without choices for scorer {self.name!r}"
            raise BadRow(found, "choices and an answer")
        return replace(content, contexts=())

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
