"""Items on their way through the model layer by layer, with ablations branching off.

What enters a layer, and its attention, is the same whichever of its heads is removed afterwards. So
the model as it is goes forward one layer at a time, and at each the ablations that begin there go
on from o_proj to the end, several of them as copies of the items in one pass.

Where prompts begin alike, that beginning is a row of its own which goes the same way first; its
keys and values are what the items then see. Under an ablation it is another one, so it goes again
from o_proj on, once for all the items.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trees import Floats, Tree, TreeBatch
from rankscope.models.attention.varlen import AttentionPlan, KVCache
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.multi_lora import AdapterSpan

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


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows of one forward pass."""

    batch: RowBatch
    plan: AttentionPlan

    def silent(self) -> "Pass":
        """The same without logits."""
        return replace(self, batch=replace(self.batch, keep=self.batch.keep[:0]))


class Beginning:
    """What all items begin with: one row, whose keys and values each pass writes anew."""

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        self.batch = RowBatch.of([Row(ids, [])], device)
        self.plan = AttentionPlan.of([len(ids)], device)
        self.length = len(ids)

    def storing(self) -> tuple[Pass, KVCache]:
        """A pass of it, and where its keys and values will be; complete as if it had run."""
        written, read = KVCache(1, self.length), KVCache(1, self.length)
        # Layers run one at a time, each writing its own from the start: the count of tokens is set.
        read.keys, read.values = written.keys, written.values
        read.lengths = torch.tensor([self.length])
        return Pass(self.batch, replace(self.plan, cache=written, store=True)), read


class Walk:
    """Some items on their way through one model."""

    def __init__(
        self,
        base: Base,
        layout: HeadLayout,
        trees: Sequence[Tree],
        beginning: Sequence[int],
        adapter_name: str | None,
    ) -> None:
        self.base = base
        self.layout = layout
        self.trees = trees
        self.adapter_name = adapter_name
        self.beginning = Beginning(beginning, base.device) if beginning else None
        self._batches: dict[int, TreeBatch] = {}
        modules = dict(base.model.named_modules())
        self._layers = [modules[layer.layer] for layer in layout]
        self._attentions = [modules[layer.attention] for layer in layout]
        self._outputs = [modules[layer.projection("o_proj")] for layer in layout]

    def batch(self, copies: int) -> TreeBatch:
        """The items, so many times one after another; made once."""
        if copies not in self._batches:
            trees, start = [*self.trees] * copies, self.beginning.length if self.beginning else 0
            self._batches[copies] = TreeBatch.of(trees, self.base.device, start)
        return self._batches[copies]

    def items(self, copies: int, prefix: KVCache | None) -> Pass:
        """A pass of the items, seeing what they begin with."""
        batch = self.batch(copies)
        return Pass(batch.batch, replace(batch.plan, prefix=prefix))

    def scores(
        self, ablations: Sequence[Ablation], begins: dict[int, list[int]], together: int
    ) -> Iterator[tuple[int | None, list[Floats]]]:
        """(which ablation, scores by item), and with None those of the model as it is.

        Args:
            ablations: all of them.
            begins: by layer, which of them begin in it.
            together: most of them in one pass; 1 where items have a beginning in common.
        """
        hidden: Tensor | None = None
        first_hidden: Tensor | None = None
        first_z = torch.empty(0)
        storing, stored = self.beginning.storing() if self.beginning else (None, None)
        for index in range(len(self.layout)):
            entered = first_hidden
            if storing is not None:
                first_hidden, first_z = self.through(index, first_hidden, storing)
            after, z = self.through(index, hidden, self.items(1, stored).silent())
            waiting = begins.get(index, [])
            for first in range(0, len(waiting), together):
                which = waiting[first : first + together]
                chosen = [ablations[i] for i in which]
                seen = self.begun_without(index, entered, first_z, chosen)
                rows = self.items(len(chosen), seen)
                scores = self.batch(len(chosen)).scores(
                    self.without(index, hidden, z, chosen, rows)
                )
                for place, one in enumerate(which):
                    yield one, scores[place * len(self.trees) : (place + 1) * len(self.trees)]
            hidden = after
        whole = self.run(self.items(1, stored), self.skipping(len(self.layout), hidden))
        yield None, self.batch(1).scores(whole)

    def begun_without(
        self, index: int, hidden: Tensor | None, z: Tensor, ablations: Sequence[Ablation]
    ) -> KVCache | None:
        """Keys and values of what items begin with, in the layers after ``index``, under an
        ablation; None where they begin with nothing or nothing comes after."""
        if self.beginning is None or index + 1 == len(self.layout):
            return None
        storing, stored = self.beginning.storing()
        self.without(index, hidden, z, ablations, storing)
        return stored

    def through(self, index: int, hidden: Tensor | None, rows: Pass) -> tuple[Tensor, Tensor]:
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
        handle = self._outputs[index].register_forward_pre_hook(keep_z)
        try:
            self.run(rows, {**replaced, layer: once})
        finally:
            handle.remove()
        return kept["out"], kept["z"]

    def without(
        self,
        index: int,
        hidden: Tensor | None,
        z: Tensor,
        ablations: Sequence[Ablation],
        rows: Pass,
    ) -> Tensor:
        """Logits under ablations that begin in layer ``index``, one after another.

        Args:
            index: of the layer.
            hidden: what enters it, (1, N, E); None for the embedding.
            z: what enters its o_proj, (1, N, H D).
            ablations: whose lowest layer it is.
            rows: a copy of the N tokens for each of them.
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
            return self.run(rows, replaced)
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

    def run(self, rows: Pass, replaced: dict[nn.Module, Any]) -> Tensor:
        """Logits of a pass in which some modules' forwards are replaced."""
        segments = (AdapterSpan(self.adapter_name, 0, rows.batch.input_ids.shape[1]),)
        with forwards(replaced):
            return self.base.logits(replace(rows.batch, segments=segments), plan=rows.plan)


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
