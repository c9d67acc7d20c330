"""Losses from the logits of one forward pass: cross-entropy by adapter, and KL to the base."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 8 * 2**20  # Float32 logits at a time; they stay in a processor's cache
CUDA_BLOCK_BYTES = 64 * 2**20  # A walk through so many takes longer than to start a kernel


def block_rows(logits: Tensor) -> int:
    size = CUDA_BLOCK_BYTES if logits.is_cuda else BLOCK_BYTES
    return max(1, size // (4 * logits.shape[1]))


class _MeanLosses(torch.autograd.Function):
    """Cross-entropy by adapter, a block of rows of the logits at a time.

    The same pass over the logits computes their gradient, in their dtype. Autograd would keep the
    logits and their logarithms in float32: with a vocabulary of 128,000 that is a gigabyte for a
    thousand labeled tokens, the largest tensors of the whole step.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, counts: Sequence[int], divisors: Sequence[float]
    ) -> Tensor:
        """(M, vocabulary), (M,) -> (len(counts),) float32."""
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grads = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        weights = torch.repeat_interleave(
            1 / torch.tensor(divisors, dtype=torch.float32), torch.tensor(counts)
        ).to(logits.device)
        rows = block_rows(logits)
        for start in range(0, len(logits), rows):
            span = slice(start, start + rows)
            block = logits[span].float()
            chosen = targets[span, None]
            # The largest probability is exp(largest - log sum exp): no second walk of exponentials,
            # and no logarithm of a target's probability, which may be too small for float32.
            losses[span] = block.amax(1) - block.gather(1, chosen)[:, 0]
            block = torch.softmax(block, 1)
            losses[span] -= block.amax(1).log_()
            if grads is not None:
                block.scatter_add_(1, chosen, block.new_full(chosen.shape, -1.0))
                grads[span] = block.mul_(weights[span, None])
        ctx.counts = list(counts)
        if grads is not None:
            ctx.save_for_backward(grads)
        return torch.stack([part.sum() for part in (losses * weights).split(list(counts))])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradient of the logits; can be computed once."""
        (gradient,) = ctx.saved_tensors
        if gradient.is_meta:  # shapes alone, no numbers
            return gradient, None, None, None
        for part, scale in zip(gradient.split(ctx.counts), grads[0], strict=True):
            # 1 for a plain sum over adapters; to compare it on a device is to wait for that.
            if not (scale.is_cpu and scale == 1):
                part.mul_(scale)
        return gradient, None, None, None


def mean_losses(
    logits: Tensor, targets: Tensor, counts: Sequence[int], divisors: Sequence[float]
) -> Tensor:
    """Each adapter's cross-entropy, summed over its labeled tokens here and divided:
    (len(counts),) float32, nats.

    ``counts`` are the labeled tokens of each adapter, in the order of the batch. ``divisors`` are
    those of its whole optimizer step, so that uneven passes weigh by tokens and add up to the
    step's mean, over the weight of a term that is no whole step.
    """
    losses: Tensor = _MeanLosses.apply(logits, targets, counts, divisors)  # type: ignore[no-untyped-call]
    return losses


class _KlDivergences(torch.autograd.Function):
    """KL(base || tuned) at every position, one block of logits at a time. As in
    :class:`_MeanLosses`, the same pass computes the gradient, p_tuned - p_base, in their dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, base_logits: Tensor) -> Tensor:
        divergences = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        grads = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = block_rows(logits)
        for start in range(0, len(logits), rows):
            span = slice(start, start + rows)
            tuned = torch.log_softmax(logits[span].float(), 1)
            base = torch.log_softmax(base_logits[span].float(), 1)
            probabilities = base.exp()
            divergences[span] = (probabilities * (base - tuned)).sum(1)
            if grads is not None:
                grads[span] = tuned.exp_().sub_(probabilities)
        if grads is not None:
            ctx.save_for_backward(grads)
        return divergences

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the tuned logits alone: the base is frozen."""
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None


def kl_divergences(logits: Tensor, base_logits: Tensor) -> Tensor:
    """KL(base || tuned) of every position, (M,) float32, nats, from logits (M, vocabulary)."""
    divergences: Tensor = _KlDivergences.apply(logits, base_logits)  # type: ignore[no-untyped-call]
    return divergences
