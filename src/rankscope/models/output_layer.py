"""The output layer of a frozen model, in blocks of positions.

With a vocabulary it is by far the widest product. On two cores, 2,738 positions of 576 values and
49,152 tokens in bfloat16 take 1.41 s forward and backward at once, and 0.88 s in blocks of 512:
operands nearly fit into the processor's cache.

A loss goes further, and reads each block of logits while it exists (``train/loss.py``). Logits and
their gradient, the largest tensors of a step with a vocabulary of 128,000, then never exist whole.
That does not work if the layer trains, has adapters or is sharded, or if a cap or a scale follows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

LOGITS_BLOCK = 512  # Most positions of one product; 128 and 1,024 were slower


def blocks(num_rows: int) -> Iterator[slice]:
    """Yield spans of at most ``LOGITS_BLOCK`` rows, of similar size."""
    count = -(-num_rows // LOGITS_BLOCK)
    for i in range(count):
        yield slice(num_rows * i // count, num_rows * (i + 1) // count)


class OutputLayer(nn.Linear):
    """A linear layer that, on a processor without gradients, computes its product in blocks.

    It shares the parameters of the layer it replaces, which may be tied to the embedding.
    """

    gives_logits = False  # Whether logits are its product, without a cap or a scale
    is_apart = False

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute (..., in) -> (..., out)."""
        if self.is_apart:
            return x
        flat = x.reshape(-1, x.shape[-1])
        is_plain = x.is_cuda or torch.is_grad_enabled() or x.dtype != self.weight.dtype
        if is_plain or len(flat) <= LOGITS_BLOCK:
            return F.linear(x, self.weight, self.bias)
        y = x.new_empty(len(flat), self.out_features)
        for span in blocks(len(flat)):
            torch.mm(flat[span], self.weight.T, out=y[span])
        return (y if self.bias is None else y.add_(self.bias)).view(*x.shape[:-1], -1)


def block_output_layer(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        model.set_output_embeddings(OutputLayer(head))


@torch.no_grad()
def note_plain_logits(model: PreTrainedModel, one_pass: Callable[[], Tensor]) -> None:
    """Note whether logits are the output layer's product and nothing more.

    ``one_pass`` runs ``model`` once and returns its logits, (M, vocabulary).
    """
    head = model.get_output_embeddings()
    if isinstance(head, OutputLayer):
        seen: list[Tensor] = []
        with (
            head.register_forward_hook(lambda *call: seen.append(call[-1])),
            model.register_forward_hook(lambda *call: seen.append(call[-1].logits)),
        ):
            logits = one_pass()
        # A cap or a scale makes a new tensor; a value shows in-place changes.
        head.gives_logits = len({out.untyped_storage()._cdata for out in seen}) == 1
        with output_layer_apart(model) as apart:
            states = one_pass()
        if apart is not None:
            again = apart(states)
            same = again.is_meta or torch.equal(again, logits)
            head.gives_logits = again.shape == logits.shape and same


@contextmanager
def output_layer_apart(model: PreTrainedModel) -> Iterator[OutputLayer | None]:
    """End the passes of ``model`` before its output layer, and yield that layer.

    Passes inside return the layer's input in place of logits. If logits are more than its product,
    or if it trains, has adapters or is sharded, this yields None and passes return logits.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, OutputLayer) or not head.gives_logits or head.weight.requires_grad:
        yield None
        return
    head.is_apart = True
    try:
        yield head
    finally:
        head.is_apart = False
