"""Exact ablation: set a head's output to zero and score the items again.

:func:`zeroed` is the slow, obvious way: a context in which anything may be scored. :func:`ablate`
gives the same numbers to rounding, layer by layer (``layerwise.py``); docs/heads.md explains why.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankscope.analyses.heads.layerwise import Ablation, Head, LayerwiseScorer
from rankscope.analyses.heads.layout import HeadLayout, HeadModel
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.evaluate.token_trees import Floats, TokenTree, cut_batches


def single_heads(layout: HeadLayout, layers: Iterable[int] | None = None) -> list[Ablation]:
    chosen = range(len(layout)) if layers is None else layers
    return [
        Ablation(((index, head),)) for index in chosen for head in range(layout[index].num_heads)
    ]


def whole_layers(layout: HeadLayout) -> list[Ablation]:
    return [Ablation(tuple((i, h) for h in range(x.num_heads))) for i, x in enumerate(layout)]


@contextmanager
def zeroed(model: HeadModel, heads: Sequence[Head]) -> Iterator[None]:
    """While inside, these heads contribute nothing: their part of o_proj's input is zero."""
    by_layer: dict[int, list[int]] = {}
    for index, head in heads:
        by_layer.setdefault(index, []).append(head)
    with ExitStack() as hooks:
        for index, chosen in by_layer.items():
            layer = model.layout[index]

            def zero(
                module: nn.Module,
                args: tuple[Tensor],
                heads: list[int] = chosen,
                shape: tuple[int, int] = (layer.num_heads, layer.head_dim),
            ) -> tuple[Tensor]:
                z = args[0].clone()
                z.view(*z.shape[:-1], *shape)[..., heads, :] = 0
                return (z,)

            hooks.callback(model.o_proj(layer).register_forward_pre_hook(zero).remove)
        yield


@dataclass(frozen=True, slots=True)
class AblationResult:
    intact: list[Floats]
    ablated: list[list[Floats]]  # By ablation


def ablate(
    model: HeadModel, trees: Sequence[TokenTree], ablations: Sequence[Ablation]
) -> AblationResult:
    """Score items under every ablation of one model; those that begin in a layer run together."""
    empty = np.zeros(0)
    result = AblationResult([empty] * len(trees), [[empty] * len(trees) for _ in ablations])
    by_first_layer: dict[int, list[int]] = {}
    for i, ablation in enumerate(ablations):
        by_first_layer.setdefault(ablation.first_layer, []).append(i)
    max_together = max(map(len, by_first_layer.values()), default=1)
    with model.base.multi_lora.dropout_off(), torch.inference_mode():
        for shared in find_shared_prefixes([tree.ids[: tree.keep[0] + 1] for tree in trees]):
            prefix = trees[shared.members[0]].ids[: shared.length]
            rest = [trees[i].without_prefix(shared.length) for i in shared.members]
            longest = max(len(tree.ids) for tree in rest)
            per_pass = max(1, min(max_together, model.batch_tokens // longest))
            if prefix:  # every ablation needs a prefix of its own
                per_pass = 1
            limits = (model.batch_tokens // per_pass, per_pass * model.base.record.vocab_size)
            for part in cut_batches([tree.size for tree in rest], *limits):
                items = [rest[i] for i in part]
                scorer = LayerwiseScorer(model, items, prefix)
                for index, scores in scorer.scores(ablations, by_first_layer, per_pass):
                    into = result.intact if index is None else result.ablated[index]
                    for i, values in zip(part, scores, strict=True):
                        into[shared.members[i]] = values
    return result
