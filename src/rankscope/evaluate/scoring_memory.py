"""Peak memory of scoring, estimated on shapes alone; of training see ``train/memory.py``."""

import math
from collections.abc import Sequence

import torch

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.continuous_batching import GROWTH, most_cached_tokens
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.evaluate.token_trees import MAX_LOGITS
from rankscope.models.attention.varlen import cached_values_per_token
from rankscope.models.parameters import nbytes
from rankscope.records import TrialSpec
from rankscope.train.allocations import PassShape, spread
from rankscope.train.memory import MemoryModel

COPIED_LAYERS = 2  # Of a cache, at a time: one layer's old rows, and a copy of them


def scoring_bytes(
    model: MemoryModel,
    group: Sequence[TrialSpec],
    items: Sequence[ItemTokens],
    settings: EvaluateConfig,
) -> int:
    """Bytes of scoring a group's trials, without them and their base, on the items of one split.

    Models are scored one after another, but answers of all of them are written together. Without
    trials it is the base that is scored.
    """
    if not items:
        return 0
    is_full = bool(group) and group[0].is_full
    adapter = None if not group or is_full else model.stand_in(group[0])
    in_pass = model.passes.scoring_bytes(adapter, fullest_pass(model, items, settings))
    if is_full and model.dtype != torch.float32:  # scored as a copy in the base's dtype
        in_pass += nbytes(model.base)
    if not any(item.written for item in items):
        return in_pass
    config = model.base.config
    prompt, written = max(item.read for item in items), settings.max_new_tokens
    together = most_cached_tokens(model.base, settings.batch_tokens) // (prompt + written)
    rows = min(max(1, together), max(1, len(group)) * len(items))
    capacity = prompt + 1 + GROWTH * math.ceil(written / GROWTH)
    cache = rows * capacity * cached_values_per_token(config) * model.dtype.itemsize
    copied = COPIED_LAYERS * cache // config.get_text_config().num_hidden_layers
    return int(cache + max(in_pass, copied))


def fullest_pass(
    model: MemoryModel, items: Sequence[ItemTokens], settings: EvaluateConfig
) -> PassShape:
    """About the largest forward pass that the items are cut into."""
    lengths = [max(item.read, item.gold) for item in items]
    tokens = min(sum(lengths), max(settings.batch_tokens, *lengths))
    most_kept = MAX_LOGITS // model.base.config.get_text_config().vocab_size
    predicted = [item.predicted for item in items]
    kept = min(sum(predicted), max(most_kept, *predicted))
    rows = math.ceil(tokens * len(items) / sum(lengths))
    return PassShape(spread(tokens, rows), min(kept, tokens - rows))
