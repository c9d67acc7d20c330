"""Exact ablation: set a head's output to zero and score the items again.

:func:`zeroed` is the slow, obvious way: a context in which anything may be scored. :func:`ablate`
gives the same numbers to rounding, layer by layer; docs/heads.md explains why. What enters a layer,
and its attention, do not depend on which of its heads is removed. So the intact model advances
layer by layer, and at each layer the ablations that begin there continue from o_proj to the end,
several in one pass as copies of the items. A prefix that all prompts share is a row of its own,
which advances first, and again under each ablation.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankscope.analyses.heads.layout import HeadLayout, HeadModel
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.evaluate.token_trees import (
    Floats,
    TokenTree,
    TokenTreeBatch,
    cut_batches,
    logprobs_at,
)
from rankscope.models.attention.varlen import AttentionPlan, KVCache
from rankscope.models.base import Row, RowBatch

Head = tuple[int, int]  # (layer, query head), both from 0


Ablation = tuple[Head, ...]  # Heads that are removed together
ForwardPass = tuple[RowBatch, AttentionPlan]


class LayerwiseScorer:
    def __init__(self, model: HeadModel, trees: Sequence[TokenTree], prefix: Sequence[int]) -> None:
        self.model = model
        self.trees = trees
        self.prefix = prefix
        self._batches: dict[int, tuple[TokenTreeBatch, AttentionPlan]] = {}
        modules = dict(model.base.model.named_modules())
        self._layers = [modules[layer.layer] for layer in model.layout]
        self._attentions = [modules[layer.attention] for layer in model.layout]
        self._o_projs = [model.o_proj(layer.index) for layer in model.layout]

    def scores(
        self, ablations: Sequence[Ablation], by_first_layer: dict[int, list[int]], per_pass: int
    ) -> Iterator[tuple[int | None, list[Floats]]]:
        """Yield (index of an ablation, scores by item); index None is the intact model.

        ``by_first_layer`` lists the indices of the ablations that begin in each layer; ``per_pass``
        of them run together, one if there is a shared prefix.
        """
        hidden: Tensor | None = None
        prefix_hidden: Tensor | None = None
        prefix_z = torch.empty(0)
        prefix_pass, prefix_cache = self.prefix_pass() if self.prefix else (None, None)
        for index in range(len(self._layers)):
            prefix_entering = prefix_hidden
            if prefix_pass is not None:
                prefix_hidden, prefix_z = self.run_layer(index, prefix_hidden, prefix_pass)
            items, plan = self.items_pass(1, prefix_cache)
            leaving, z = self.run_layer(index, hidden, (items.without_logits(), plan))
            waiting = by_first_layer.get(index, [])
            for first in range(0, len(waiting), per_pass):
                indices = waiting[first : first + per_pass]
                chosen = [ablations[i] for i in indices]
                cache = self.ablated_prefix(index, prefix_entering, prefix_z, chosen)
                copies = self.items_pass(len(chosen), cache)
                logits = self.run_ablated(index, hidden, z, chosen, copies)
                scores = self.scores_of(logits, len(chosen))
                for copy, ablation_index in enumerate(indices):
                    n = len(self.trees)
                    yield ablation_index, scores[copy * n : (copy + 1) * n]
            hidden = leaving
        intact = self.run(
            self.items_pass(1, prefix_cache), self.entering(len(self._layers), hidden)
        )
        yield None, self.scores_of(intact, 1)

    def batch(self, copies: int) -> tuple[TokenTreeBatch, AttentionPlan]:
        """The items, repeated ``copies`` times; built once."""
        if copies not in self._batches:
            trees, num_shared = [*self.trees] * copies, len(self.prefix)
            batch = TokenTreeBatch.of(trees, self.model.base.device, num_shared)
            self._batches[copies] = batch, self.model.plan(batch.rows, num_shared)
        return self._batches[copies]

    def scores_of(self, logits: Tensor, copies: int) -> list[Floats]:
        """Summed log p of every continuation, by item, from the logits at kept positions."""
        batch, _ = self.batch(copies)
        return batch.sums(logprobs_at(logits, batch.sources, batch.targets))

    def items_pass(self, copies: int, prefix: KVCache | None) -> ForwardPass:
        batch, plan = self.batch(copies)
        return batch.rows, replace(plan, prefix=prefix)

    def prefix_pass(self) -> tuple[ForwardPass, KVCache]:
        length = len(self.prefix)
        batch = RowBatch.of([Row(self.prefix, [])], self.model.base.device)
        plan = AttentionPlan.of([length], self.model.base.device)
        written, read = KVCache(1, length), KVCache(1, length)
        # Layers run one at a time, and each writes from position 0: set the final length here.
        read.keys, read.values, read.lengths = written.keys, written.values, torch.tensor([length])
        return (batch, replace(plan, cache=written, store=True)), read

    def ablated_prefix(
        self, index: int, hidden: Tensor | None, z: Tensor, ablations: Sequence[Ablation]
    ) -> KVCache | None:
        """The prefix's keys and values in the layers after ``index``, under an ablation."""
        if not self.prefix or index + 1 == len(self._layers):
            return None
        prefix_pass, cache = self.prefix_pass()
        self.run_ablated(index, hidden, z, ablations, prefix_pass)
        return cache

    def run_layer(
        self, index: int, hidden: Tensor | None, rows: ForwardPass
    ) -> tuple[Tensor, Tensor]:
        """Run one layer on the hidden states (1, N, E) that enter it, or on the embedding's: what
        leaves it, (1, N, E), and what enters its o_proj, z (1, N, H D)."""
        seen: dict[str, Tensor] = {}

        def keep_z(module: nn.Module, args: tuple[Tensor]) -> None:
            seen["z"] = args[0]

        def keep_leaving(module: nn.Module, args: tuple[Tensor], leaving: Tensor) -> None:
            seen["leaving"] = leaving

        forwards = self.entering(index, hidden)
        forwards |= dict.fromkeys(self._layers[index + 1 :], _skip_layer)
        with ExitStack() as hooks:
            hooks.callback(self._o_projs[index].register_forward_pre_hook(keep_z).remove)
            hooks.callback(self._layers[index].register_forward_hook(keep_leaving).remove)
            self.run(rows, forwards)
        return seen["leaving"], seen["z"]

    def run_ablated(
        self,
        index: int,
        hidden: Tensor | None,
        z: Tensor,
        ablations: Sequence[Ablation],
        rows: ForwardPass,
    ) -> Tensor:
        """Logits under ablations that begin in layer ``index``, each on its copy of the N tokens.

        ``hidden`` (1, N, E) enters the layer, and ``z`` (1, N, H D) its o_proj, without ablation.
        """
        copies = len(ablations)
        ablated_z = self.zero_heads(index, z.repeat(1, copies, 1), ablations)

        def attend(*args: Any, **settings: Any) -> tuple[Tensor, None]:
            return self._o_projs[index](ablated_z), None

        forwards = self.entering(index, None if hidden is None else hidden.repeat(1, copies, 1))
        forwards[self._attentions[index]] = attend

        def zero(at: int, z: Tensor) -> Tensor:
            return self.zero_heads(at, z.clone(), ablations)

        later = {at for ablation in ablations for at, _ in ablation if at > index}
        with self.model.changed_inputs({at: partial(zero, at) for at in later}):
            return self.run(rows, forwards)

    def zero_heads(self, index: int, z: Tensor, ablations: Sequence[Ablation]) -> Tensor:
        """z (1, C N, H D) with the heads of ablation i zeroed in copy i, in place."""
        layer = self.model.layout[index]
        by_copy = z.view(len(ablations), -1, layer.num_heads, layer.head_dim)
        for copy, ablation in enumerate(ablations):
            by_copy[copy][:, [head for at, head in ablation if at == index]] = 0
        return z

    def entering(self, index: int, hidden: Tensor | None) -> dict[nn.Module, Any]:
        """Forwards that skip the layers before ``index``, so that ``hidden`` enters it."""
        forwards: dict[nn.Module, Any] = dict.fromkeys(self._layers[:index], _skip_layer)
        if index and hidden is not None:
            forwards[self._layers[index - 1]] = lambda *args, **settings: hidden
        return forwards

    def run(self, rows: ForwardPass, forwards: dict[nn.Module, Any]) -> Tensor:
        with _replaced_forwards(forwards):
            return self.model.logits(*rows)


def _skip_layer(hidden_states: Tensor, *args: Any, **settings: Any) -> Tensor:
    return hidden_states


@contextmanager
def _replaced_forwards(forwards: dict[nn.Module, Any]) -> Iterator[None]:
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def single_heads(layout: HeadLayout, layers: Iterable[int] | None = None) -> list[Ablation]:
    chosen = range(len(layout)) if layers is None else layers
    return [((index, head),) for index in chosen for head in range(layout[index].num_heads)]


def whole_layers(layout: HeadLayout) -> list[Ablation]:
    return [tuple((i, h) for h in range(x.num_heads)) for i, x in enumerate(layout)]


def zeroed(model: HeadModel, heads: Ablation) -> AbstractContextManager[None]:
    """While inside, these heads contribute nothing: their part of o_proj's input is zero."""

    def zero(index: int, z: Tensor) -> Tensor:
        layer, chosen = model.layout[index], [head for at, head in heads if at == index]
        z = z.clone()
        z.view(*z.shape[:-1], layer.num_heads, layer.head_dim)[..., chosen, :] = 0
        return z

    return model.changed_inputs({index: partial(zero, index) for index, _ in heads})


def ablate(
    model: HeadModel, trees: Sequence[TokenTree], ablations: Sequence[Ablation]
) -> tuple[list[Floats], list[list[Floats]]]:
    """Score items under every ablation of one model; those that begin in a layer run together.

    Gives the scores of the intact model by item, then those of each ablation.
    """
    intact, *ablated = [[np.zeros(0)] * len(trees) for _ in (None, *ablations)]
    by_first_layer: dict[int, list[int]] = {}
    for i, ablation in enumerate(ablations):
        by_first_layer.setdefault(min(ablation)[0], []).append(i)
    max_together = max(map(len, by_first_layer.values()), default=1)
    with model.base.multi_lora.dropout_off(), torch.inference_mode():
        prompts = [tree.ids[: tree.keep[0] + 1] for tree in trees]
        for length, members in find_shared_prefixes(prompts):
            prefix = prompts[members[0]][:length]
            rest = [trees[i].without_prefix(length) for i in members]
            longest = max(len(tree.ids) for tree in rest)
            per_pass = max(1, min(max_together, model.batch_tokens // longest))
            if prefix:  # every ablation needs a prefix of its own
                per_pass = 1
            limits = (model.batch_tokens // per_pass, per_pass * model.base.record.vocab_size)
            for part in cut_batches([tree.size for tree in rest], *limits):
                items = [rest[i] for i in part]
                scorer = LayerwiseScorer(model, items, prefix)
                for index, scores in scorer.scores(ablations, by_first_layer, per_pass):
                    into = intact if index is None else ablated[index]
                    for i, values in zip(part, scores, strict=True):
                        into[members[i]] = values
    return intact, ablated
