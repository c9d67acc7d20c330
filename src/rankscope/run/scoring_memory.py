"""Peak memory of scoring, estimated on shapes alone; for training see ``train/memory.py``."""

import math
from collections.abc import Callable, Sequence

import torch

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.continuous_batching import writing_bytes
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.evaluate.token_trees import most_kept
from rankscope.models.parameters import nbytes
from rankscope.records import TrialSpec
from rankscope.train.memory import MemoryModel
from rankscope.train.pass_memory import PassShape, spread


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
    together = max(most_kept(config.vocab_size, model.device), *labels)
    kept = min(sum(item.predicted for item in items), together)
    rows = math.ceil(tokens * num_rows / total)
    # About the largest forward pass that the items are cut into.
    fullest = PassShape(spread(tokens, rows), min(kept, tokens - rows))
    written = [item for item in items if item.written]
    answer = max(settings.max_new_tokens, *(item.written for item in items))
    longest = max((item.read for item in written), default=0) + answer

    def needed(group: Sequence[TrialSpec]) -> int:
        adapter = None
        if group and not group[0].is_full:
            adapter = model.stand_in(max(group, key=lambda trial: trial.rank or 0))
        in_pass = model.passes.scoring_bytes(adapter, fullest)
        if group and group[0].is_full and model.dtype != torch.float32:
            in_pass += nbytes(model.base)  # scored as a copy in the base's dtype
        if not written:
            return in_pass
        num_rows = max(1, len(group)) * len(written)
        peak = writing_bytes(model.base, num_rows, longest, settings.batch_tokens, in_pass)
        return peak + model.fixed_bytes(group)

    return needed
