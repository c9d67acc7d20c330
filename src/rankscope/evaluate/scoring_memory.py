"""Peak memory of scoring, estimated on shapes alone; for training see ``train/memory.py``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import GROWTH, most_cached_tokens
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.evaluate.token_trees import MAX_LOGITS
from rankscope.models.attention.varlen import cached_values_per_token
from rankscope.models.parameters import nbytes
from rankscope.records import TrialSpec
from rankscope.train.memory import MemoryModel
from rankscope.train.pass_memory import PassShape, spread

COPIED_LAYERS = 2  # Of a cache, at a time: one layer's old rows, and a copy of them


@dataclass(frozen=True, slots=True)
class ScoringShape:
    """The size of scoring one split."""

    fullest: PassShape  # About the largest forward pass that its items are cut into
    answers: int = 0  # Written by each model
    longest: int = 0  # Tokens of the longest prompt with its answer
    most_cached: int = 0  # Tokens that the cache of keys and values has room for

    @classmethod
    def of(
        cls, model: MemoryModel, items: Sequence[ItemTokens], settings: EvaluateConfig
    ) -> "ScoringShape":
        """Of at least one item."""
        lengths = [max(math.ceil(item.read / item.rows), item.gold) for item in items]
        labels = [math.ceil(item.predicted / item.rows) for item in items]
        num_rows = sum(item.rows for item in items)
        total = sum(length * item.rows for length, item in zip(lengths, items, strict=True))
        tokens = min(total, max(settings.batch_tokens, *lengths))
        most_kept = MAX_LOGITS // model.base.config.get_text_config().vocab_size
        kept = min(sum(item.predicted for item in items), max(most_kept, *labels))
        rows = math.ceil(tokens * num_rows / total)
        shape = PassShape(spread(tokens, rows), min(kept, tokens - rows))
        written = [item for item in items if item.written]
        if not written:
            return cls(shape)
        answer = max(settings.max_new_tokens, *(item.written for item in written))
        longest = max(item.read for item in written) + answer
        longest = min(longest, context_length(model.base.config) or longest)
        most_cached = most_cached_tokens(model.base, settings.batch_tokens)
        return cls(shape, len(written), longest, most_cached)


def scoring_bytes(model: MemoryModel, group: Sequence[TrialSpec], shape: ScoringShape) -> int:
    """Bytes of scoring a group's trials, besides their states and their base.

    Models are scored one after another, but answers of all of them are written together. Without
    trials it is the base that is scored.
    """
    adapter = None
    if group and not group[0].is_full:
        adapter = model.stand_in(max(group, key=lambda trial: trial.rank or 0))
    in_pass = model.passes.scoring_bytes(adapter, shape.fullest)
    if group and group[0].is_full and model.dtype != torch.float32:
        in_pass += nbytes(model.base)  # scored as a copy in the base's dtype
    if not shape.answers:
        return in_pass
    capacity = shape.longest + GROWTH
    rows = min(max(1, shape.most_cached // capacity), max(1, len(group)) * shape.answers)
    config = model.base.config
    cache = rows * capacity * cached_values_per_token(config) * model.dtype.itemsize
    copied = COPIED_LAYERS * cache // int(config.get_text_config().num_hidden_layers)
    return cache + max(in_pass, copied)
