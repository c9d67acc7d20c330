"""Exact ablation: a head's output is set to zero, and the items are scored again.

The slow, obvious way is :func:`zeroed`, a context in which anything may be scored. The fast way,
:func:`ablate`, gives the same numbers to rounding and saves four things:

- the hidden states that enter layer l are the same for every head of layer l, and so is its
  attention: they are computed once, and each head goes on from layer l's o_proj (``walk.py``);
- several heads of a layer go through the later layers in one pass, as rows of their own;
- a prompt and its options are one row with branches, so there is one pass;
- what prompts begin with in common goes through the later layers once for all of them.

For the first layers the first is little, for the last ones nearly everything: half of all layers on
the average.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trees import Floats, Tree, cut, most_kept
from rankscope.analyze.heads.walk import Ablation, Head, Walk
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.models.base import Base


def single_heads(layout: HeadLayout, layers: Iterable[int] | None = None) -> list[Ablation]:
    """Every query head by itself, of all layers or of some."""
    chosen = range(len(layout)) if layers is None else layers
    return [
        Ablation(((index, head),))
        for index in chosen
        for head in range(layout.layers[index].num_heads)
    ]


def kv_groups(layout: HeadLayout) -> list[Ablation]:
    """The query heads of every key/value head together."""
    return [
        Ablation(tuple((layer.index, kv * layer.group_size + i) for i in range(layer.group_size)))
        for layer in layout
        for kv in range(layer.num_kv_heads)
    ]


def layer_group(layout: HeadLayout, layers: Iterable[int]) -> Ablation:
    """All heads of some layers together."""
    return Ablation(
        tuple((index, head) for index in layers for head in range(layout.layers[index].num_heads))
    )


def whole_layers(layout: HeadLayout) -> list[Ablation]:
    """All heads of every layer, layer by layer."""
    return [layer_group(layout, [index]) for index in range(len(layout))]


@contextmanager
def zeroed(base: Base, layout: HeadLayout, heads: Sequence[Head]) -> Iterator[None]:
    """While inside, these heads give nothing: what enters o_proj of theirs is zero."""
    by_layer: dict[int, list[int]] = {}
    for index, head in heads:
        by_layer.setdefault(index, []).append(head)
    handles = []
    for index, chosen in by_layer.items():
        layer = layout.layers[index]

        def without(
            module: nn.Module,
            args: tuple[Tensor],
            heads: list[int] = chosen,
            shape: tuple[int, int] = (layer.num_heads, layer.head_dim),
        ) -> tuple[Tensor]:
            z = args[0].clone()
            z.view(*z.shape[:-1], *shape)[..., heads, :] = 0
            return (z,)

        module = base.model.get_submodule(layer.projection("o_proj"))
        handles.append(module.register_forward_pre_hook(without))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class AblationResult:
    """Summed log p of every continuation, per item: of the model as it is, and per ablation."""

    intact: list[Floats]
    ablated: list[list[Floats]]
    """By ablation, in the order asked for."""


def ablate(
    base: Base,
    layout: HeadLayout,
    trees: Sequence[Tree],
    ablations: Sequence[Ablation],
    adapter_name: str | None,
    batch_tokens: int,
) -> AblationResult:
    """Score items under every ablation of one model.

    Args:
        base: the base, with the adapter attached or the method on it.
        layout: of its heads.
        trees: the items.
        ablations: any heads; those that begin in the same layer run together.
        adapter_name: the adapter; None is the base, or whatever is on it.
        batch_tokens: most tokens of a pass, but at least one item under one ablation.
    """
    nothing = np.zeros(0)
    found = AblationResult([nothing] * len(trees), [[nothing] * len(trees) for _ in ablations])
    begins: dict[int, list[int]] = {}
    for i, ablation in enumerate(ablations):
        begins.setdefault(ablation.first_layer, []).append(i)
    together = max(map(len, begins.values()), default=1)
    was_training, base.multi_lora.training = base.multi_lora.training, False
    try:
        with torch.inference_mode():
            for members, abreast, walk in walks(
                base, layout, trees, adapter_name, (together, batch_tokens)
            ):
                for which, scores in walk.scores(ablations, begins, abreast):
                    into = found.intact if which is None else found.ablated[which]
                    for member, values in zip(members, scores, strict=True):
                        into[member] = values
    finally:
        base.multi_lora.training = was_training
    return found


def walks(
    base: Base,
    layout: HeadLayout,
    trees: Sequence[Tree],
    adapter_name: str | None,
    most: tuple[int, int],
) -> Iterator[tuple[list[int], int, Walk]]:
    """Items in parts that go through the model together: which, under how many ablations at a time.

    Args:
        base, layout, trees, adapter_name: as in :func:`ablate`.
        most: ablations and tokens of a pass.
    """
    most_kept_positions = most_kept(base.record.vocab_size)
    for shared in find_shared_prefixes([tree.ids[: tree.keep[0] + 1] for tree in trees]):
        own = [trees[i].after(shared.length) for i in shared.members]
        beginning = trees[shared.members[0]].ids[: shared.length]
        abreast = max(1, min(most[0], most[1] // max(len(tree.ids) for tree in own)))
        if beginning:  # each ablation has one of its own
            abreast = 1
        for part in cut(own, most[1] // abreast, max(1, most_kept_positions // abreast)):
            walk = Walk(base, layout, [own[i] for i in part], beginning, adapter_name)
            yield [shared.members[i] for i in part], abreast, walk
