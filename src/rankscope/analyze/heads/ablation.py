"""Exact ablation: a head's output is set to zero, and the items are scored again.

The slow, obvious way is :func:`zeroed`, a context in which anything may be scored. The fast way,
:func:`ablate`, gives the same numbers to rounding and saves three things:

- the hidden states that enter layer l are the same for every head of layer l, and so is its
  attention: they are computed once, and each head goes on from layer l's o_proj;
- several heads of a layer go through the later layers in one pass, as rows of their own;
- a prompt and its options are one row with branches, so there is one pass and no cache, and what
  all prompts begin with, such as a chat template's system turn, is computed once.

For the first layers that is little, for the last ones nearly everything: half of all layers on the
average.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trees import Floats, Tree, TreeBatch, cut, most_kept, set_apart
from rankscope.models.base import Base
from rankscope.models.row_trees import NO_PARENT

Head = tuple[int, int]
"""(layer, query head), both from 0."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """Heads that are removed together."""

    heads: tuple[Head, ...]

    @property
    def first_layer(self) -> int:
        """The lowest layer that changes."""
        return min(layer for layer, _ in self.heads)


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
class AblationScores:
    """Summed log p of every continuation, per item: of the model as it is, and per ablation."""

    intact: list[Floats]
    ablated: list[list[Floats]]
    """By ablation, in the order asked for."""


def ablate(
    base: Base,
    layout: HeadLayout,
    trees: Sequence[Tree],
    ablations: Sequence[Ablation],
    slot: str | None,
    batch_tokens: int,
) -> AblationScores:
    """Score items under every ablation of one model.

    Args:
        base: the base, with the adapter attached or the method on it.
        layout: of its heads.
        trees: the items.
        ablations: any heads; those that begin in the same layer run together.
        slot: the adapter; None is the base, or whatever is on it.
        batch_tokens: most tokens of a pass, but at least one item under one ablation.
    """
    nothing = np.zeros(0)
    found = AblationScores([nothing] * len(trees), [[nothing] * len(trees) for _ in ablations])
    begins: dict[int, list[int]] = {}
    for i, ablation in enumerate(ablations):
        begins.setdefault(ablation.first_layer, []).append(i)
    together = max(map(len, begins.values()), default=1)
    shared, own = set_apart(trees)
    begun = 0 if shared is None else len(shared.ids)
    longest = begun + max(len(tree.ids) for tree in own)
    together = max(1, min(together, batch_tokens // longest))
    limit = most_kept(base.record.vocab_size)
    was_training, base.pack.training = base.pack.training, False
    try:
        with torch.inference_mode():
            most = batch_tokens // together - begun
            for members in cut(own, most, max(1, limit // together)):
                walk = Walk(base, layout, [own[i] for i in members], slot, shared)
                for which, scores in walk.scores(ablations, begins, together):
                    into = found.intact if which is None else found.ablated[which]
                    for member, values in zip(members, scores, strict=True):
                        into[member] = values
    finally:
        base.pack.training = was_training
    return found


class Walk:
    """Some items on their way through the model, layer by layer, with ablations branching off.

    ``shared`` is what all of them begin with.
    """

    def __init__(
        self,
        base: Base,
        layout: HeadLayout,
        trees: Sequence[Tree],
        slot: str | None,
        shared: Tree | None,
    ) -> None:
        self.base = base
        self.layout = layout
        self.slot = slot
        self.trees = list(trees)
        self.parents: list[int] | None = None
        if shared is not None:
            self.trees = [shared, *self.trees]
            self.parents = [NO_PARENT, *([0] * len(trees))]
        self._batches: dict[int, TreeBatch] = {}
        modules = dict(base.model.named_modules())
        self._layers = [modules[layer.layer] for layer in layout]
        self._attentions = [modules[layer.attention] for layer in layout]
        self._outputs = [modules[layer.projection("o_proj")] for layer in layout]

    def batch(self, copies: int) -> TreeBatch:
        """The items, so many times one after another; made once."""
        if copies not in self._batches:
            parents = None
            if self.parents is not None:
                count = len(self.trees)
                parents = [
                    NO_PARENT if parent == NO_PARENT else parent + copy * count
                    for copy in range(copies)
                    for parent in self.parents
                ]
            trees = [*self.trees] * copies
            self._batches[copies] = TreeBatch.of(trees, self.base.device, parents)
        return self._batches[copies]

    def of_items(self, scores: list[Floats]) -> list[Floats]:
        """Without what the beginning that items share gives, which is nothing."""
        return scores if self.parents is None else scores[1:]

    def scores(
        self, ablations: Sequence[Ablation], begins: dict[int, list[int]], together: int
    ) -> Iterator[tuple[int | None, list[Floats]]]:
        """(which ablation, scores by item), and with None those of the model as it is."""
        hidden: Tensor | None = None
        for index in range(len(self.layout)):
            after, z = self.through(index, hidden)
            waiting = begins.get(index, [])
            for first in range(0, len(waiting), together):
                chosen = waiting[first : first + together]
                batch = self.batch(len(chosen))
                logits = self.without(index, hidden, z, [ablations[i] for i in chosen])
                scores = batch.scores(logits)
                for place, which in enumerate(chosen):
                    own = scores[place * len(self.trees) : (place + 1) * len(self.trees)]
                    yield which, self.of_items(own)
            hidden = after
        whole = self.run(self.batch(1), self.skipping(len(self.layout), hidden))
        yield None, self.of_items(self.batch(1).scores(whole))

    def through(self, index: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """One layer on the hidden states (1, N, E) that enter it, None for the embedding's.

        Returns what leaves it, (1, N, E), and what enters its o_proj, z (1, N, H D).
        """
        layer = self._layers[index]
        kept: dict[str, Tensor] = {}
        forward = layer.forward

        def once(hidden_states: Tensor, *args: Any, **settings: Any) -> Any:
            entering = hidden_states if hidden is None else hidden
            kept["out"] = forward(entering, *args, **settings)
            return kept["out"]

        def keep_z(module: nn.Module, args: tuple[Tensor]) -> None:
            kept["z"] = args[0]

        replaced = {other: skip for other in self._layers if other is not layer}
        batch = self.batch(1)
        nothing = batch.batch.keep[:0]
        alone = replace(batch, batch=replace(batch.batch, keep=nothing))
        handle = self._outputs[index].register_forward_pre_hook(keep_z)
        try:
            self.run(alone, {**replaced, layer: once})
        finally:
            handle.remove()
        return kept["out"], kept["z"]

    def without(
        self, index: int, hidden: Tensor | None, z: Tensor, ablations: Sequence[Ablation]
    ) -> Tensor:
        """Logits under ablations that begin in layer ``index``, one after another.

        Args:
            index: of the layer.
            hidden: what enters it, (1, N, E); None for the embedding.
            z: what enters its o_proj, (1, N, H D).
            ablations: whose lowest layer it is.
        """
        copies = len(ablations)
        cleared = self.cleared(index, z.repeat(1, copies, 1), ablations)

        def attend(*args: Any, **settings: Any) -> tuple[Tensor, None]:
            return self._outputs[index](cleared), None

        entering = None if hidden is None else hidden.repeat(1, copies, 1)
        replaced = self.skipping(index, entering)
        replaced[self._attentions[index]] = attend
        later = {at for ablation in ablations for at, _ in ablation.heads if at > index}
        handles = []
        for other in later:

            def clear(module: nn.Module, args: tuple[Tensor], layer: int = other) -> tuple[Tensor]:
                return (self.cleared(layer, args[0].clone(), ablations),)

            handles.append(self._outputs[other].register_forward_pre_hook(clear))
        try:
            return self.run(self.batch(copies), replaced)
        finally:
            for handle in handles:
                handle.remove()

    def cleared(self, index: int, z: Tensor, ablations: Sequence[Ablation]) -> Tensor:
        """z (1, C N, H D) with the heads of ablation i zeroed in copy i, in place."""
        layer = self.layout.layers[index]
        by_copy = z.view(len(ablations), -1, layer.num_heads, layer.head_dim)
        for copy, ablation in enumerate(ablations):
            by_copy[copy][:, [head for at, head in ablation.heads if at == index]] = 0
        return z

    def skipping(self, index: int, entering: Tensor | None) -> dict[nn.Module, Any]:
        """Forwards under which layers before ``index`` do nothing and ``entering`` enters it."""
        replaced: dict[nn.Module, Any] = dict.fromkeys(self._layers[:index], skip)
        if index and entering is not None:
            replaced[self._layers[index - 1]] = lambda *args, **settings: entering
        return replaced

    def run(self, batch: TreeBatch, replaced: dict[nn.Module, Any]) -> Tensor:
        """Logits of a pass in which some modules' forwards are replaced."""
        with forwards(replaced):
            return self.base.logits(batch.of_slot(self.slot), plan=batch.plan)


def skip(hidden_states: Tensor, *args: Any, **settings: Any) -> Tensor:
    """A decoder layer that does nothing."""
    return hidden_states


@contextmanager
def forwards(replaced: dict[nn.Module, Any]) -> Iterator[None]:
    """While inside, modules have other forwards."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
