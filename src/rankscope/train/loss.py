"""Losses of one forward pass: cross-entropy by adapter, and KL to the base.

Both take logits, or the output layer with its input. In the second case only one block of logits
and its gradient exist at a time, in the dtype of the logits; one walk computes both. Autograd would
keep the logits and their logarithms in float32. With a vocabulary of 128,000 that is a gigabyte for
a thousand labeled tokens, the largest tensors of the whole step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.device import on_device
from rankscope.models.output_layer import LOGITS_BLOCK, OutputLayer, blocks

BLOCK_BYTES = 8 * 2**20  # Float32 logits at a time; they stay in a processor's cache
CUDA_BLOCK_BYTES = 64 * 2**20  # The walk through so many takes longer than the start of a kernel


def _walk(
    states: Sequence[Tensor], head: OutputLayer | None, grads: Tensor | None
) -> Iterator[tuple[slice, list[Tensor], Tensor | None]]:
    """Walk over the positions in spans.

    Yields each span; its logits in float32, from each of ``states``; and a place for the gradient
    of the first of these. The ``grads`` of the first states are computed from that gradient.
    """
    held = None
    if grads is not None and head is not None:
        held = grads.new_empty(min(LOGITS_BLOCK, len(grads)), head.out_features)
    for span in blocks(len(states[0])):
        logits = [x[span] if head is None else head(x[span]) for x in states]
        above = None if grads is None else grads[span] if held is None else held[: len(logits[0])]
        size = CUDA_BLOCK_BYTES if logits[0].is_cuda else BLOCK_BYTES
        rows = max(1, size // (4 * logits[0].shape[1]))
        for start in range(0, len(logits[0]), rows):
            part = slice(start, min(start + rows, len(logits[0])))
            place = slice(span.start + part.start, span.start + part.stop)
            yield place, [x[part].float() for x in logits], None if above is None else above[part]
        if above is not None and grads is not None and head is not None:
            torch.mm(above, head.weight, out=grads[span])
        del logits  # before the next ones


class _MeanLosses(torch.autograd.Function):
    """Computes cross-entropy by adapter."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: OutputLayer | None,
        targets: Tensor,
        counts: Sequence[int],
        divisors: Sequence[float],
        temperatures: Sequence[float],
    ) -> Tensor:
        """Compute (M, vocabulary or width), (M,) -> (len(counts),) float32."""

        def by_row(values: Sequence[float]) -> Tensor:
            each = torch.tensor(values, dtype=torch.float32)
            each = torch.repeat_interleave(each, torch.tensor(counts))
            return on_device(each, states.device)

        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        weights, heats = 1 / by_row(divisors), None
        if {*temperatures} != {1.0}:
            heats = by_row(temperatures)
        factors = weights if heats is None else weights / heats
        for span, (block,), above in _walk([states], head, grads):
            chosen = targets[span, None]
            if heats is not None:
                block = block / heats[span, None]
            # The largest probability is exp(largest - log sum exp): no second walk of exponentials,
            # and no logarithm of a target's probability, which may be too small for float32.
            losses[span] = block.amax(1) - block.gather(1, chosen)[:, 0]
            block = torch.softmax(block, 1)
            losses[span] -= block.amax(1).log_()
            if above is not None:
                block.scatter_add_(1, chosen, block.new_full(chosen.shape, -1.0))
                above.copy_(block.mul_(factors[span, None]))
        ctx.counts = list(counts)
        if grads is not None:
            ctx.save_for_backward(grads)
        return torch.stack([part.sum() for part in (losses * weights).split(list(counts))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradient of the states; works once."""
        (gradient,) = ctx.saved_tensors
        if not gradient.is_meta:  # shapes alone, no numbers
            for part, scale in zip(gradient.split(ctx.counts), grads[0], strict=True):
                # 1 for a plain sum over adapters; to compare it on a device is to wait for that.
                if not (scale.is_cpu and scale == 1):
                    part.mul_(scale)
        return gradient, None, None, None, None, None


def mean_losses(
    states: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    divisors: Sequence[float],
    head: OutputLayer | None = None,
    temperatures: Sequence[float] = (1.0,),
) -> Tensor:
    """Compute each adapter's cross-entropy, (len(counts),) float32, nats.

    It is summed over the adapter's labeled tokens of this pass and divided. Uneven passes thereby
    weigh by tokens, and add up to the step's mean.

    Args:
        states: logits (M, vocabulary), or the input of ``head``.
        counts: labeled tokens of each adapter, in the order of the batch.
        divisors: label tokens of each adapter's whole optimizer step, over the weight of the term.
        temperatures: divisors of the logits, one for each count, unless all are 1.
    """
    losses: Tensor = _MeanLosses.apply(states, head, targets, counts, divisors, temperatures)  # type: ignore[no-untyped-call]
    return losses


class _KlDivergences(torch.autograd.Function):
    """Computes KL(base || tuned) at every position; its gradient in logits is p_tuned - p_base."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, base_states: Tensor, head: OutputLayer | None) -> Tensor:
        divergences = torch.empty(len(states), dtype=torch.float32, device=states.device)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for span, logits, above in _walk([states, base_states], head, grads):
            tuned, base = (torch.log_softmax(block, 1) for block in logits)
            probabilities = base.exp()
            divergences[span] = (probabilities * (base - tuned)).sum(1)
            if above is not None:
                above.copy_(tuned.exp_().sub_(probabilities))
        if grads is not None:
            ctx.save_for_backward(grads)
        return divergences

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the tuned states only: the base is frozen."""
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None


def kl_divergences(states: Tensor, base_states: Tensor, head: OutputLayer | None = None) -> Tensor:
    """Compute KL(base || tuned) of every position, (M,) float32, nats.

    The states are logits (M, vocabulary), or inputs of ``head``.
    """
    divergences: Tensor = _KlDivergences.apply(states, base_states, head)  # type: ignore[no-untyped-call]
    return divergences
