"""What one pass of the training loop allocates, counted on shapes alone.

The pass runs on torch's meta device, whose tensors have shapes and no storage. Each tensor that it
would allocate is counted as long as it lives, so the count follows the code on any architecture.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankscope.models.attention.kernel import KernelRows, has_varlen_kernel
from rankscope.models.attention.products import RowLayout
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Row, RowBatch
from rankscope.models.multi_lora import MultiLora
from rankscope.train.loss import mean_losses

META = torch.device("meta")


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it, as long as they live.

    Storage that existed before does not count, and views share the storage of their tensor.

    >>> with AllocationCounter() as counter:
    ...     x = torch.zeros(1000, device="meta")
    >>> counter.peak_bytes
    4000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes: int = 0
        self._living: dict[int, weakref.ref[Any]] = {}
        self._foreign: dict[int, Any] = {}  # kept, so that no new storage gets their address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in storages((args, kwargs)):
            if storage._cdata not in self._living:
                self._foreign[storage._cdata] = storage
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            if storage._cdata not in self._living and storage._cdata not in self._foreign:
                self._born(storage)
        return out

    def restart(self) -> int:
        """The peak until now; a new one is counted from here on."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _born(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self.live_bytes -= size
            del self._living[key]

        self._living[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def storages(values: object) -> list[Any]:
    """The storage of every tensor in a nest of tuples, lists and dictionaries."""
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, Tensor)]


@dataclass(frozen=True, slots=True)
class PassShape:
    """The size of a forward pass: tokens of each row, and positions with a label."""

    lengths: tuple[int, ...]
    num_labels: int


class PassPeaks(NamedTuple):
    """Most bytes that a pass holds at once.

    Attributes:
        layers: until the backward pass has gone through the layers; this grows with their number.
        embedding: after that, while the gradient of a trained embedding is computed.
    """

    layers: int
    embedding: int


def counted_pass(
    group: MultiLora, shape: PassShape, weights: Sequence[int], device: torch.device
) -> PassPeaks:
    """Most bytes that one forward and backward pass of the training loop holds at once.

    Gradients exist from an earlier pass of the step and are not counted.

    Args:
        group: on the meta device; its adapters share the rows by ``weights``. Without adapters the
            model itself trains.
        device: on which the pass will run; the layout of rows depends on it.
    """
    names = [name for name, n in zip(group.adapters, weights, strict=True) for _ in range(n)]
    batch = _batch_of_shape(shape, names or [None])
    plan = _meta_plan(batch.lengths, device)
    for parameter in group.model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    for adapter in group.adapters.values():
        for parameter in adapter.parameters():
            parameter.grad = torch.empty_like(parameter)
    group.training = True
    peaks: list[int] = []
    with (
        group.routing(batch.segments, batch.kept_segments()),
        AllocationCounter() as counter,
        _on_embedding_gradient(group.model, lambda: peaks.append(counter.restart())),
    ):
        logits = _logits_of_shape(group, batch, plan)
        targets = torch.zeros(len(batch.keep), dtype=torch.int64, device=META)
        losses = mean_losses(logits, targets, [len(batch.keep)], [len(batch.keep)])
        del logits
        losses.sum().backward()
    return PassPeaks(peaks[0], counter.peak_bytes) if peaks else PassPeaks(counter.peak_bytes, 0)


def counted_scoring(group: MultiLora, shape: PassShape, device: torch.device) -> int:
    """Most bytes that one forward pass of scoring holds at once, log-probabilities included.

    Args:
        group: on the meta device, with one adapter, which has all rows, or with none.
        device: as for :func:`counted_pass`.
    """
    batch = _batch_of_shape(shape, [*group.adapters] or [None])
    plan = _meta_plan(batch.lengths, device)
    group.training = False
    routing = group.routing(batch.segments, batch.kept_segments())
    with routing, AllocationCounter() as counter, torch.no_grad():
        logits = _logits_of_shape(group, batch, plan)
        torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return int(counter.peak_bytes)


def _batch_of_shape(shape: PassShape, adapter_names: Sequence[str | None]) -> RowBatch:
    """Rows of the given lengths, with labels spread over them, shared out among the names."""
    rows = []
    for index, length in enumerate(shape.lengths):
        labels = share(shape.num_labels, index, len(shape.lengths))
        name = adapter_names[index * len(adapter_names) // len(shape.lengths)]
        rows.append(Row([0] * length, range(max(0, length - 1 - labels), length - 1), name))
    return RowBatch.of(rows, torch.device("cpu"))


def _logits_of_shape(group: MultiLora, batch: RowBatch, plan: AttentionPlan) -> Tensor:
    logits: Tensor = group.model(
        input_ids=batch.input_ids.to(META),
        position_ids=batch.position_ids.to(META),
        use_cache=False,
        logits_to_keep=batch.keep.to(META),
        attention_plan=plan,
    ).logits[0]
    return logits


@contextmanager
def _on_embedding_gradient(model: Any, act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when the backward pass reaches the embedding's output, if it trains."""

    def watch(module: nn.Module, args: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda grad: act())

    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _meta_plan(lengths: Sequence[int], device: torch.device) -> AttentionPlan:
    """The plan that rows have on ``device``, for tensors on the meta device."""
    plan = AttentionPlan.of(lengths, torch.device("cpu"))  # this machine may lack the device
    by_products = device.type == "cpu" and plan.layout is not None
    return replace(
        plan,
        to_rows=plan.to_rows.to(META),
        to_tokens=plan.to_tokens.to(META),
        layout=RowLayout.of(lengths, META) if by_products else None,
        kernel=KernelRows.of(plan.lengths, META) if has_varlen_kernel(device) else None,
    )


def spread(total: int, count: int) -> tuple[int, ...]:
    """``total`` in ``count`` whole parts that differ by at most one."""
    return tuple(share(total, index, count) for index in range(count))


def share(total: int, index: int, count: int) -> int:
    """The part at ``index`` of ``total`` in ``count`` whole parts."""
    return total * (index + 1) // count - total * index // count
