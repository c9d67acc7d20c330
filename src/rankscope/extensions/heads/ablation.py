"""Exact ablation: set a head's output to zero and score the items again.

:func:`zeroed` is the slow, obvious way: a context in which anything may be scored. :func:`ablate`
gives the same numbers up to rounding. The input of a layer does not depend on which of its heads is
removed. So the intact model runs layer by layer, and every ablation begins at its own layer with
the output of the layer before. The states of one layer are kept at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.evaluate.likelihood import SummedLogprobs, prefix_groups
from rankscope.evaluate.token_trees import Floats, TokenTree
from rankscope.extensions.heads.layout import HeadLayout, HeadModel

Head = tuple[int, int]  # (layer, query head), both from 0
Ablation = tuple[Head, ...]  # Heads that are removed together


def single_heads(layout: HeadLayout) -> list[Ablation]:
    return [((i, head),) for i, layer in enumerate(layout) for head in range(layer.num_heads)]


def whole_layers(layout: HeadLayout) -> list[Ablation]:
    return [tuple((i, h) for h in range(x.num_heads)) for i, x in enumerate(layout)]


def zeroed(model: HeadModel, heads: Ablation) -> AbstractContextManager[None]:
    """Let these heads contribute nothing inside: their part of o_proj's input is zero."""

    def zero(index: int, z: Tensor) -> Tensor:
        layer, chosen = model.layout[index], [head for at, head in heads if at == index]
        z = z.clone()
        z.view(*z.shape[:-1], layer.num_heads, layer.head_dim)[..., chosen, :] = 0
        return z

    return model.changed_inputs({index: partial(zero, index) for index, _ in heads})


def ablate(
    model: HeadModel, trees: Sequence[TokenTree], ablations: Sequence[Ablation]
) -> tuple[list[Floats], list[list[Floats]]]:
    """Score items under every ablation of one model.

    Returns the scores of the intact model by item, then those of each ablation.
    """
    base, name = model.base, model.adapter_name
    layers = [base.model.get_submodule(layer.layer) for layer in model.layout]
    intact, *ablated = [SummedLogprobs(len(trees)) for _ in (None, *ablations)]
    with base.multi_lora.dropout_off(), torch.inference_mode():
        for prefix, batches in prefix_groups(trees, model.batch_tokens, base):
            for batch in batches:  # one at a time: the states that leave a layer are kept
                group, states = (prefix, [batch]), list[Tensor]()
                for index in range(len(layers)):
                    before, after = layers[:index], layers[index + 1 :]
                    for heads, scores in zip(ablations, ablated, strict=True):
                        if min(heads)[0] == index:
                            with zeroed(model, heads), _skipped(before, states):
                                scores.add(base, name, group)
                    with _skipped(before, states), _skipped(after), _leaving(layers[index]) as kept:
                        intact.add(base, name, group)  # only the last layer's logits stay
                    states = kept
    return intact.values, [scores.values for scores in ablated]


@contextmanager
def _leaving(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a layer's outputs inside: hidden states (1, N, E), one tensor per pass."""
    states: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: states.append(out))
    try:
        yield states
    finally:
        hook.remove()


@contextmanager
def _skipped(layers: Sequence[nn.Module], states: Sequence[Tensor] = ()) -> Iterator[None]:
    """Skip the layers in passes inside; the last one returns its kept output, if given."""
    again = iter(states)
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = _skip_layer
        if states:
            vars(layers[-1])["forward"] = lambda *args, **settings: next(again)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward


def _skip_layer(hidden_states: Tensor, *args: Any, **settings: Any) -> Tensor:
    return hidden_states
