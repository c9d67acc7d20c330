"""Token losses of a pack: one forward's logits, split by adapter."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def summed_losses(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum of the cross-entropy of each adapter's labelled tokens.

    Args:
        logits: (M, vocabulary); computed in float32 whatever the dtype.
        targets: (M,) token ids.
        counts: labelled tokens of each adapter, in the order of the batch, summing to M.

    Returns:
        (len(counts),) float32, nats. Sums, not means: the loop divides by the label tokens of the
        whole optimizer step, so that uneven micro-batches weigh by tokens.
    """
    token_losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.stack([part.sum() for part in token_losses.split(list(counts))])
