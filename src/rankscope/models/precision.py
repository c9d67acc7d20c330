"""Float32 weights with products in bfloat16: mixed precision (Micikevicius et al., 1710.03740)."""

from typing import Any

import torch
from transformers import PreTrainedModel


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let a float32 model compute its matrix products in ``dtype``, for good.

    torch's autocast casts a weight when it is used and keeps norms, softmax and sums in float32;
    gradients and what the optimizer adds up are float32. Nothing happens where ``dtype`` is.
    """
    if dtype == model.dtype:
        return
    forward: Any = torch.autocast(model.device.type, dtype)(model.forward)
    model.forward = forward
