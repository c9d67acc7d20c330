"""Gradient checkpointing (Chen et al., 1604.06174): compute activations again in the backward pass.

It wraps the layers that transformers marks for it in torch's non-reentrant checkpoint, from
outside: transformers' own switch works in training mode only, which would turn on the base's
dropout.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.errors import UserError
from rankscope.models.multi_lora import MultiLora


def enable_gradient_checkpointing(model: nn.Module, multi_lora: MultiLora) -> None:
    """Keep only the input of every decoder layer; dropout masks are repeated."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        found = f"{type(model).__name__}, which marks no layer for it"
        raise UserError("gradient_checkpointing", found, do="remove it")

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), multi_lora.same_routing()

    for layer in layers:
        again: Any = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
        layer.forward = again


def disable_gradient_checkpointing(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)
