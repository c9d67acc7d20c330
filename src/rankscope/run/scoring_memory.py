"""Peak memory of scoring, estimated on shapes alone; for training see ``train/memory.py``."""

import math
from collections.abc import Callable, Sequence

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


def scoring_memory(
    model: MemoryModel, items: Sequence[ItemTokens], settings: EvaluateConfig
) -> Callable[[Sequence[TrialSpec]], int]:
    """Bytes of scoring a split, of at least one item, by the group of trials that is scored,
    besides their states and their base.

    Models are scored one after another, but answers of all of them are written together. Without
    trials it is the base that is scored.
    """
    lengths = [max(math.ceil(item.read / item.rows), item.gold) for item in items]
    labels = [math.ceil(item.predicted / item.rows) for item in items]
    num_rows = sum(item.rows for item in items)
    total = sum(length * item.rows for length, item in zip(lengths, items, strict=True))
    tokens = min(total, max(settings.batch_tokens, *lengths))
    config = model.base.config.get_text_config()
    most_kept = MAX_LOGITS // config.vocab_size
    kept = min(sum(item.predicted for item in items), max(most_kept, *labels))
    rows = math.ceil(tokens * num_rows / total)
    # About the largest forward pass that the items are cut into.
    fullest = PassShape(spread(tokens, rows), min(kept, tokens - rows))
    written = [item for item in items if item.written]
    answer = max(settings.max_new_tokens, *(item.written for item in items))
    longest = max((item.read for item in written), default=0) + answer
    capacity = min(longest, context_length(model.base.config) or longest) + GROWTH
    most_cached = most_cached_tokens(model.base, settings.batch_tokens)

    def needed(group: Sequence[TrialSpec]) -> int:
        adapter = None
        if group and not group[0].is_full:
            adapter = model.stand_in(max(group, key=lambda trial: trial.rank or 0))
        in_pass = model.passes.scoring_bytes(adapter, fullest)
        if group and group[0].is_full and model.dtype != torch.float32:
            in_pass += nbytes(model.base)  # scored as a copy in the base's dtype
        if not written:
            return in_pass
        rows = min(max(1, most_cached // capacity), max(1, len(group)) * len(written))
        cache = rows * capacity * cached_values_per_token(config) * model.dtype.itemsize
        copied = COPIED_LAYERS * cache // int(config.num_hidden_layers)
        return cache + max(in_pass, copied)

    return needed
