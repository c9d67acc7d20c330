"""Items longer than the model's context: an error, or cut at their beginning and counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from rankscope.config.patterns import compile_pattern
from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.errors import UserError
from rankscope.evaluate.engines.engine import OWN_ENGINE, Engine
from rankscope.evaluate.scorers.scorer import Scorer

NOTED_SHARE = 0.05  # Share of a task's scored items from which a note says so


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """One split of one task, encoded by its scorer."""

    scorer: Scorer[Any]
    encoder: Encoder
    spec: TaskSpec
    settings: EvaluateConfig
    items: tuple[Item, ...]
    encoded: Sequence[Any]  # One per item
    max_tokens: int = 0  # The model's context; 0 is no limit
    cut_at_start: frozenset[int] = frozenset()  # Items cut to fit the context
    engine: Engine = OWN_ENGINE  # Writes the answers

    @property
    def cut_at_end(self) -> frozenset[int]:
        """Indices of items that are scored only up to the encoder's ``max_length``."""
        return frozenset(
            index for index, item in enumerate(self.encoded) if self.scorer.is_cut_at_end(item)
        )

    @property
    def truncated(self) -> int:
        return len(self.cut_at_start | self.cut_at_end)

    def bos_of(self, ids: Sequence[int]) -> list[int]:
        """Return the begin token if a prompt begins with it."""
        bos = self.encoder.bos_ids
        return bos if list(ids[: len(bos)]) == bos else []

    def last_tokens(self, ids: Sequence[int], room: int, where: str) -> list[int]:
        """Keep the begin token, if a prompt has it, and its last tokens, ``room`` in all."""
        bos = self.bos_of(ids)
        num_kept = room - len(bos)
        if num_kept < 1:
            found = "an answer that fills the model's context"
            raise UserError(where, found, "room for a prompt", "remove this row")
        return [*bos, *ids[len(ids) - num_kept :]]


def context_length(config: PretrainedConfig) -> int | None:
    """Return the number of positions that the model was trained for, if its configuration says
    so."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def fit_to_context(split: EncodedSplit, where: str) -> EncodedSplit:
    """Make every item of a split fit the context.

    Longer items are an error. The setting ``truncate_left`` cuts their beginning instead, which
    scores another question. ``where`` names task and split in messages.
    """
    lengths = [split.scorer.num_tokens(item) for item in split.encoded]
    too_long_items = [i for i, length in enumerate(lengths) if length > split.max_tokens]
    if not split.max_tokens or not too_long_items:
        return split
    if split.settings.too_long == "refuse":
        longest = max(too_long_items, key=lengths.__getitem__)
        raise UserError(
            where,
            f"{len(too_long_items)} of {len(split.items)} items that do not fit the model's "
            f"context of {split.max_tokens} tokens; the longest, {split.items[longest].location}, "
            f"needs {lengths[longest]}",
            "items that fit",
            "shorten the prompt, remove these rows, use a model with a longer context, or cut the "
            "beginning: 'evaluate.too_long: truncate_left'",
        )
    encoded = list(split.encoded)
    for index in too_long_items:
        place = f"{where}: {split.items[index].location}"
        encoded[index] = split.scorer.truncate_left(encoded[index], split, place)
    return replace(split, encoded=encoded, cut_at_start=frozenset(too_long_items))


def length_notes(splits: Sequence[EncodedSplit]) -> Iterator[str]:
    """Note cut items of a task, and gold answers longer than models may write. A few are not noted.

    Raises UserError: most gold answers are too long.
    """
    spec, limit = splits[0].spec, splits[0].settings.max_new_tokens
    num, cut = sum(len(s.items) for s in splits), sum(s.truncated for s in splits)
    if cut > NOTED_SHARE * num:
        yield (
            f"{spec.name}: {cut} of {num} scored items are cut to fit the model's context or "
            "train.max_length, so models are scored on less than the items say"
        )
    pattern = compile_pattern(spec.extract) if spec.extract else None
    golds = [(s.scorer.must_write(item, pattern), s, item) for s in splits for item in s.items]
    lengths = [len(s.encoder.answer_ids(text, item)) for text, s, item in golds if text]
    too_long = [length for length in lengths if length > limit]
    if len(too_long) <= NOTED_SHARE * num:
        return
    found = f"{len(too_long)} of {num} scored items"
    longer = f"a gold answer longer than evaluate.max_new_tokens = {limit}"
    do = f"set 'evaluate.max_new_tokens: {max(too_long)}', the length of the longest"
    if len(too_long) > num / 2:
        raise UserError(f"task {spec.name!r}", f"{found} with {longer}", "one that fits", do)
    yield f"{spec.name}: {found} have {longer}, so no model is right on them; {do}"
