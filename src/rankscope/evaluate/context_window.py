"""Items longer than the model's context: an error, or cut at their beginning and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.errors import UserError
from rankscope.evaluate.scorers.scorer import Scorer


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """One split of one task, as a scorer encodes it."""

    scorer: Scorer[Any]
    encoder: Encoder
    spec: TaskSpec
    settings: EvaluateConfig
    items: tuple[Item, ...]
    encoded: Sequence[Any]  # One per item
    cut_at_start: frozenset[int] = frozenset()  # Items cut to fit the context

    @property
    def cut_at_end(self) -> frozenset[int]:
        """Indices of items scored up to the encoder's ``max_length`` only."""
        return frozenset(
            index for index, item in enumerate(self.encoded) if self.scorer.is_cut_at_end(item)
        )

    @property
    def truncated(self) -> int:
        return len(self.cut_at_start | self.cut_at_end)


@dataclass(frozen=True, slots=True)
class ContextWindow:
    length: int
    bos_ids: Sequence[int]  # Tokens that begin every prompt; a cut keeps them
    max_new_tokens: int

    def begins_with_bos(self, ids: Sequence[int]) -> bool:
        return list(ids[: len(self.bos_ids)]) == list(self.bos_ids)

    def last_tokens(self, ids: Sequence[int], room: int, where: str) -> list[int]:
        """``bos_ids`` if the prompt begins with them, then its last tokens, ``room`` in all."""
        bos = list(self.bos_ids) if self.begins_with_bos(ids) else []
        num_kept = room - len(bos)
        if num_kept < 1:
            raise UserError(
                where,
                "an answer that fills the model's context",
                "room for a prompt",
                "remove this row",
            )
        return [*bos, *ids[len(ids) - num_kept :]]


def context_length(config: PretrainedConfig) -> int | None:
    """Number of positions the model was trained for, if its configuration says so."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def fit_to_context(split: EncodedSplit, max_tokens: int, where: str) -> EncodedSplit:
    """The split with every item inside the context, cut at its beginning only if asked to: that
    scores another question. ``where``: task and split, for messages."""
    window = ContextWindow(max_tokens, split.encoder.bos_ids, split.settings.max_new_tokens)
    lengths = [split.scorer.num_tokens(item) for item in split.encoded]
    too_long_items = [index for index, length in enumerate(lengths) if length > window.length]
    if not too_long_items:
        return split
    if split.settings.too_long == "refuse":
        longest = max(too_long_items, key=lengths.__getitem__)
        raise UserError(
            where,
            f"{len(too_long_items)} of {len(split.items)} items that do not fit the model's "
            f"context of {window.length} tokens; the longest, {split.items[longest].location}, "
            f"needs {lengths[longest]}",
            "items that fit",
            "remove these rows, use a model with a longer context, or cut prompts at their "
            "beginning: 'eval --too-long truncate_left', in a study 'too_long: truncate_left'",
        )
    encoded = list(split.encoded)
    for index in too_long_items:
        place = f"{where}: {split.items[index].location}"
        encoded[index] = split.scorer.truncate_left(encoded[index], window, place)
    return replace(split, encoded=encoded, cut_at_start=frozenset(too_long_items))
