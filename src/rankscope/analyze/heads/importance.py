"""What each head is worth to the loss, to first order, for all heads by one backward pass.

    I_h = E_x |z_h . dL(x)/dz_h|        (Michel et al., 1905.10650, equation 2)

z is what enters o_proj, cut into heads. The product is summed over the tokens and the head dim of
an example before the absolute value is taken; the mean is over examples. L is the negative
log-probability of the right answer, nats. z_h . dL/dz_h is the change of L when z_h is scaled up,
per unit of scale: going down to zero changes L by about its negative. It is first order alone, and
fails where the loss is saturated.

A key/value head serves several query heads: their *signed* values are summed first, since removing
it removes them together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trees import Tree, TreeBatch, cut, logprobs_at, most_kept
from rankscope.models.base import Base


@dataclass(frozen=True, slots=True)
class Importance:
    """First-order values of every example and head, with their signs.

    Attributes:
        signed: by layer, (X examples, H), z_h . dL/dz_h in nats.
        losses: (X,), L in nats.
    """

    signed: tuple[Tensor, ...]
    losses: Tensor

    def raw(self) -> list[Tensor]:
        """By layer, E_x |.| of every query head, (H,), nats."""
        return [layer.abs().mean(0) for layer in self.signed]

    def raw_groups(self, layout: HeadLayout) -> list[Tensor]:
        """By layer, E_x |.| of every key/value head, (K,), nats."""
        return [
            values.view(len(values), layer.num_kv_heads, -1).sum(2).abs().mean(0)
            for layer, values in zip(layout, self.signed, strict=True)
        ]


def normalized(values: Tensor) -> Tensor:
    """Divided by their l2 norm; zeros where all are zero."""
    norm = values.norm()
    return values / norm if float(norm) > 0 else torch.zeros_like(values)


def head_importance(
    base: Base,
    layout: HeadLayout,
    trees: Sequence[Tree],
    adapter_name: str | None,
    batch_tokens: int,
) -> Importance:
    """Importance of every head for the right answers of some items.

    Args:
        base: the base, with the adapter attached or the method on it; nothing of it changes.
        layout: of its heads.
        trees: the items.
        adapter_name: the adapter; None is the base, or whatever is on it.
        batch_tokens: most tokens of a pass, but at least one item.
    """
    rows = [tree.gold_row() for tree in trees]
    signed = tuple(torch.zeros(len(rows), layer.num_heads) for layer in layout)
    losses = torch.zeros(len(rows))
    was_training, base.multi_lora.training = base.multi_lora.training, False
    try:
        for members in cut(rows, batch_tokens, most_kept(base.record.vocab_size)):
            batch = TreeBatch.of([rows[i] for i in members], base.device)
            index = torch.tensor(members)
            with torch.enable_grad(), watched(base, layout, batch) as seen:
                logits = base.logits(batch.for_adapter(adapter_name), plan=batch.plan)
                logprobs = logprobs_at(logits, batch.rows, batch.tokens)
                # No parameter gets a gradient: all that is asked for is that of the first z.
                torch.autograd.grad(-logprobs.sum(), seen.first)
            for layer, values in zip(signed, seen.values, strict=True):
                layer[index] = values
            owners = torch.from_numpy(batch.owners)
            losses[index] = torch.zeros(len(members)).index_add_(
                0, owners, -logprobs.detach().float().cpu()
            )
    finally:
        base.multi_lora.training = was_training
    return Importance(signed, losses)


class Seen:
    """What hooks on every o_proj saw of one pass."""

    def __init__(self, num_layers: int) -> None:
        self.first: list[Tensor] = []
        self.values: list[Tensor] = [torch.zeros(0)] * num_layers


@contextmanager
def watched(base: Base, layout: HeadLayout, batch: TreeBatch) -> Iterator[Seen]:
    """While inside, a backward pass leaves z_h . dL/dz_h of every row and head."""
    seen = Seen(len(layout))
    num_rows = len(batch.batch.lengths)
    lengths = torch.tensor(batch.batch.lengths)
    row_of_token = torch.repeat_interleave(torch.arange(num_rows), lengths).to(base.device)
    handles = []
    for layer in layout:

        def look(
            module: nn.Module,
            args: tuple[Tensor],
            index: int = layer.index,
            shape: tuple[int, int] = (layer.num_heads, layer.head_dim),
        ) -> tuple[Tensor]:
            z = args[0]
            if index == 0:  # nothing before it is needed
                z = z.detach().requires_grad_()
                seen.first.append(z)

            def keep(grad: Tensor) -> None:
                product = (z.detach().float() * grad.float()).view(-1, *shape).sum(2)
                sums = product.new_zeros(num_rows, shape[0])
                seen.values[index] = sums.index_add_(0, row_of_token, product).cpu()

            z.register_hook(keep)
            return (z,)

        module = base.model.get_submodule(layer.projection("o_proj"))
        handles.append(module.register_forward_pre_hook(look))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
