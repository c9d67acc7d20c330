"""Gradient checkpointing (Chen et al., 1604.06174): a layer's activations are computed again in the
backward pass instead of being kept.

What is recomputed are the layers that transformers marks for it. They are wrapped from outside, by
torch's non-reentrant checkpoint, because transformers' own switch works in training mode alone,
which would turn the base's dropout on.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.errors import BadInput
from rankscope.models.multi_lora import Pack


def recompute_layers(model: nn.Module, pack: Pack) -> None:
    """Keep only the input of every decoder layer, until :func:`keep_activations`.

    Losses and gradients are the same numbers: dropout masks are drawn again as they were.

    Raises:
        BadInput: the architecture marks no layer.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise BadInput(
            f"gradient_checkpointing: {type(model).__name__} marks no layer that can be "
            "recomputed; remove it"
        )

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), recomputing(pack)

    for layer in layers:
        again: Any = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
        layer.forward = again


@contextmanager
def recomputing(pack: Pack) -> Iterator[None]:
    """A pass that runs for the second time."""
    pack.recomputing = True
    try:
        yield
    finally:
        pack.recomputing = False


def keep_activations(model: nn.Module) -> None:
    """Undo :func:`recompute_layers`; a model without it is left as it is."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)
